import torch
from hypothesis import settings

# The tests' tensors are small: threads would cost more than they give.
torch.set_num_threads(1)
settings.register_profile("prismatic", deadline=None, derandomize=True)
settings.load_profile("prismatic")
