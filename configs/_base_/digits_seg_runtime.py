_base_ = './digits_runtime.py'

custom_imports = dict(imports=['agvm_mm', 'agvm_mm.digits.segmentation'])
default_scope = 'mmseg'

default_hooks = dict(visualization=dict(_delete_=True, type='SegVisualizationHook'))
visualizer = dict(type='SegLocalVisualizer')
