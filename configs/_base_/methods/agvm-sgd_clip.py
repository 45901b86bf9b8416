# As the authors' released recipe, which clips gradients around the end of the
# warm-up. The leaf gives the updates between which it does.
_base_ = './agvm-sgd.py'

optim_wrapper = dict(clip_grad=dict(max_norm=1.0))
