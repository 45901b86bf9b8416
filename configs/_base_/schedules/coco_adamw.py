_base_ = ['./coco.py', '../optimizers/adamw.py']
