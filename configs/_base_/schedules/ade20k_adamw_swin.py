_base_ = ['./ade20k.py', '../optimizers/adamw_swin.py']
