_base_ = ['./coco.py', '../optimizers/sgd.py']
