_base_ = ['./ade20k.py', '../optimizers/sgd.py']
