import pytest
from .tiny import TINY
from pathlib import Path
CASES = """model=huge
modle=tiny
model.dmi=3
+model.dmi=3
+foo=1
foo=1
perturbation.sparsity=0
perturbation.sparsity=1.5
perturbation.scale=abc
perturbation.scale=-1
perturbation.sparsity=abc
sparsity=0.03
sparsity=.03
+sparsity=0.03
sparsity=0
router.num_experts=0
router.num_experts=2.5
router.num_experts=abc
model.dim=30 model.num_heads=4
model.dim=abc
model.num_heads=0
model.num_layers=1.5
optim.lr=abc
optim.lr=-1
optim.batch_size=0
optim.batch_size=1.5
data.seq_len=0
data=text
data=text data.path=nowhere
data=text data.path=TMP/empty
data=text data.path=TMP/binary
data=text data.path=TMP/short
ckpt_path=nowhere.ckpt
ckpt_path=TMP/binary
ckpt_path=TMP/empty
ckpt_path=TMP
objective=loss/vla
objective=[loss/val,nope]
objective=null
focal=radail
focal.pattern=radail
focal.units=fraction
perturbation.mode=atractive
model.norm=foo
router.level=batch
router.level=nope
router.pool=mean
router.perturbation=null
trainer.max_step=3
+trainer.max_step=3
trainer.max_steps=abc
trainer.precision=12
trainer.accelerator=tpux
trainer.val_check_interval=0
trainer.devices=0
seed=abc
seed=-1
seed=null
loss=mse
loss.path=prismatic.training.nope
tags=5
+tags.note=hello
model.dim=
model
model.dim=[1
experiment=nope
experiment=
debug=nope
perturbation.strength=50
perturbation.strength=0.1
optim.lr=1e30
model.depth=1
callbacks.checkpoint.monitor=nope
model._target_=prismatic.models.Nope
perturbation=0.5
-m trainer.max_steps=2
trainer.gradient_clip_val=-1
data.held_out_tokens=0
router=dense router.num_experts=2
router=dense router.level=token
~model
strategy=null
perturbation.strategy=null
focal.length=0
+experiment=willow
+debug=fdr""".splitlines()

@pytest.mark.parametrize("case", CASES)
def test_case(case, script, tmp_path):
    (tmp_path/"empty").write_bytes(b""); (tmp_path/"binary").write_bytes(bytes(range(256))*100)
    (tmp_path/"short").write_text("hello")
    try:
        o = script("train", *TINY, *case.replace("TMP", str(tmp_path)).split())
    except BaseException as e:
        text = f"RAISED {type(e).__name__}: {e}"[:600]
    else:
        text = f"status {o.status}\n{o.err}" + ("" if o.status else o.out[-200:])
    with open("/tmp/cases.txt", "a") as f:
        f.write(f"##### {case}\n{text}\n")
