"""GANs of other architectures by their command: what they draw, and that a run that grows, stopped
in each stage, goes on to the same bits."""

from pathlib import Path

import numpy as np
import pytest
from processes import arrays

WORDS = (
    "train --architecture progressive --widest 8 --grow-every 4 --log-every 2 --checkpoint-every 2"
)


@pytest.mark.slow
def test_growth_is_resumed_in_each_stage(command):
    assert command("gan", f"{WORDS} --steps 8 --dir whole")[0] == 0
    for stop in (2, 4, 6):
        assert command("gan", f"{WORDS} --steps {stop} --dir to{stop}")[0] == 0
        status, out, _ = command("gan", f"{WORDS} --steps 8 --dir to{stop} --resume")
        assert status == 0
        assert f"resuming from step {stop}" in out
        whole, parts = arrays("whole", 8), arrays(f"to{stop}", 8)
        assert whole.keys() == parts.keys()
        for leaf, value in whole.items():
            np.testing.assert_array_equal(value, parts[leaf], err_msg=f"{leaf} from {stop}")


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        "--architecture style --widest 8 --latents 4",
        "--architecture progressive --widest 8 --grow-every 3 --objective wasserstein",
        "--architecture small_biggan --latents 6 --condition projection",
        "--objective began",
    ],
)
def test_every_kind_draws_its_pictures(command, words):
    status, _, err = command("gan", words, "--steps 6 --checkpoint-every 6")
    assert status == 0, err
    drawn = {path.name for path in Path("runs/gan-digits-001").glob("step-*/*.png")}
    names = {"samples", "interpolations", "projections", "truncation"}
    assert drawn >= {f"{name}.png" for name in names}
