# digits_10e.py for MMSegmentation.
_base_ = './digits_10e.py'

custom_imports = dict(imports=['agvm_mm', 'demo.segmentation'])
default_scope = 'mmseg'

default_hooks = dict(visualization=dict(type='SegVisualizationHook'))
visualizer = dict(type='SegLocalVisualizer')
