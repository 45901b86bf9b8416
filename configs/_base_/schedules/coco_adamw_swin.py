_base_ = ['./coco.py', '../optimizers/adamw_swin.py']
