"""A run that grows, by its command: stopped in each stage, before a change and after, it goes on to
the same bits."""

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
