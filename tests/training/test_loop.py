import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.training.logging import MetricLog, progress, read_metrics
from jaxgen.training.loop import NonFiniteLoss, fit


def run(tmp_path, step, *, start=0, stop, state=0.0, per_call=1, log_every=2, save_every=4):
    saved, log = {}, MetricLog(tmp_path, start)
    with progress("testing", stop, start) as advance:
        end = fit(
            jnp.float32(state),
            step,
            itertools.count(start),
            jax.random.key(0),
            start=start,
            stop=stop,
            steps_per_call=per_call,
            log=log,
            log_every=log_every,
            checkpoint=lambda done, state: saved.update({done: float(state)}),
            checkpoint_every=save_every,
            advance=advance,
        )
    log.close()
    return float(end), saved, read_metrics(tmp_path / "metrics.jsonl")


def count(state, batch, key):
    return state + 1, {"loss": state, "batch": jnp.float32(batch)}


def test_steps_logs_and_checkpoints_are_where_they_belong(tmp_path):
    end, saved, rows = run(tmp_path, count, stop=10)
    assert end == 10
    assert saved == {4: 4.0, 8: 8.0, 10: 10.0}  # the last step is always saved
    assert [row["step"] for row in rows] == [2, 4, 6, 8, 10]
    assert [row["loss"] for row in rows] == [0.5, 2.5, 4.5, 6.5, 8.5]  # means since the last row
    assert rows[-1]["batch"] == 8.5


def test_several_steps_a_call(tmp_path):
    def five(state, batch, key):
        losses = state + jnp.arange(5.0)
        return state + 5, {"loss": losses}

    end, saved, rows = run(tmp_path, five, stop=20, per_call=5, log_every=10, save_every=10)
    assert end == 20
    assert saved == {10: 10.0, 20: 20.0}
    assert [row["loss"] for row in rows] == [4.5, 14.5]


def test_a_loss_that_is_not_finite_stops_the_run_at_its_step(tmp_path):
    def bad(state, batch, key):
        return state + 1, {"loss": jnp.where(state == 6, jnp.nan, state)}

    with pytest.raises(NonFiniteLoss, match="not finite from step 7 on"):
        run(tmp_path, bad, stop=20, log_every=10, save_every=5)
    saved = {}
    with pytest.raises(NonFiniteLoss), progress("t", 20) as advance:
        fit(
            jnp.float32(0),
            bad,
            itertools.count(),
            jax.random.key(0),
            start=0,
            stop=20,
            log=MetricLog(tmp_path),
            log_every=10,
            checkpoint=lambda done, state: saved.update({done: float(state)}),
            checkpoint_every=5,
            advance=advance,
        )
    assert saved == {5: 5.0}  # the one after the bad step was never written


def test_a_resumed_log_is_that_of_an_unbroken_run(tmp_path):
    _, _, whole = run(tmp_path / "whole", count, stop=12)
    run(tmp_path / "parts", count, stop=8)
    # rows 6 and 8 are from steps that a crash after checkpoint 4 would repeat
    _, _, parts = run(tmp_path / "parts", count, start=4, stop=12, state=4.0)
    assert parts == whole


def test_a_log_cut_short_is_readable(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 2.0}]


def test_progress_says_what_and_how_far(capsys):
    with progress("training", 4) as advance:
        advance(activity="compiling")
        advance(2, "loss 0.5", activity="training")
        advance(2)
    out = capsys.readouterr().out
    assert "compiling: 0/4" in out
    assert "training: 2/4" in out
    assert "loss 0.5" in out
    assert "training: 4/4" in out


def test_tensorboard_holds_the_same_numbers(tmp_path):
    from tensorboardX.proto import event_pb2
    from tensorboardX.record_writer import masked_crc32c  # noqa: F401  (the package is there)

    run(tmp_path, count, stop=4)
    (path,) = (tmp_path / "tensorboard").iterdir()
    raw, values = path.read_bytes(), {}
    while raw:  # TFRecord: length, its checksum, data, its checksum
        length = int(np.frombuffer(raw[:8], "<u8")[0])
        event = event_pb2.Event.FromString(raw[12 : 12 + length])
        raw = raw[16 + length :]
        values |= {(event.step, v.tag): v.simple_value for v in event.summary.value}
    assert values[(2, "loss")] == 0.5
    assert values[(4, "loss")] == 2.5
