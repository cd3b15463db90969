"""The native module is set up at the first call, whatever mode is on then: each case in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from fastlstm.backends import native

pytestmark = pytest.mark.skipif(native.unavailable() is not None, reason=str(native.unavailable()))

MODES = {
    "fake tensors": (
        "from torch._subclasses.fake_tensor import FakeTensorMode\n"
        "with FakeTensorMode(allow_non_fake_inputs=True):\n    {0}\n"
    ),
    "functionalize": "torch.func.functionalize(lambda v: v)(x)\ntorch.func.functionalize(lambda v: [{0}])(x)\n",
    "export": "torch.export.export(fastlstm.LSTM(3, 5), (x,))\n{0}\n",
    "make_fx": "from torch.fx.experimental.proxy_tensor import make_fx\nmake_fx(lambda v: ({0}, v * 2)[1])(x)\n",
    "vmap": "torch.vmap(lambda v: ({0}, v * 2)[1])(x)\n",
    "grad": "torch.func.grad(lambda v: ({0}, v.sum())[1])(x)\n",
    "inference mode": "with torch.inference_mode():\n    {0}\n",
    "default device": "with torch.device('meta'):\n    {0}\n",
    "default type": "torch.set_default_dtype(torch.float64)\n{0}\ntorch.set_default_dtype(torch.float32)\n",
}


@pytest.mark.parametrize("first", ["fastlstm.backends.native.load()", "__import__('fastlstm')"])
@pytest.mark.parametrize("mode", MODES)
def test_calls_are_right_after_it(mode: str, first: str) -> None:
    if mode == "export" and "import" in first:
        pytest.skip("the module is there before the mode is")
    imported = "" if "import" in first else "import fastlstm, fastlstm.backends.native\n"
    code = (
        f"import torch\n{imported}x = torch.randn(3, 2, 3)\n{MODES[mode].format(first)}"
        "import fastlstm\ntorch.manual_seed(0)\nlstm = fastlstm.LSTM(3, 5)\n"
        "torch.testing.assert_close(lstm(x)[0], lstm.to_torch()(x)[0])\n"
        "lstm(x)[0].sum().backward()\nassert 'cpu' in str(fastlstm.last_plan()), fastlstm.last_plan()\n"
        "h = fastlstm.LSTM(3, 5).stream(2).step(x[0])\nassert h.shape == (2, 5)\n"
    )
    environment = os.environ | {"FASTLSTM_BACKEND": "cpu"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
