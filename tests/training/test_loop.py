import itertools
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.training.logging import MetricLog, progress, read_metrics
from jaxgen.training.loop import NonFiniteLoss, Preempted, fit


def run(
    tmp_path, step, *, start=0, stop, state=0.0, per_call=1, log_every=2, save_every=4, **kwargs
):
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
            **kwargs,
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


def skipping(bad):
    """A step whose loss is its number, skipped (and not finite) at the given numbers."""

    def step(state, batch, key):
        here = jnp.isin(state + 1, jnp.array(bad, jnp.float32))
        return state + 1, {"loss": jnp.where(here, jnp.nan, state + 1), "skipped": here.astype(int)}

    return step


def test_skipped_steps_are_counted_and_left_out_of_the_mean(tmp_path):
    end, saved, rows = run(tmp_path, skipping([2, 5, 6]), stop=8, max_skipped=3)
    assert end == 8
    assert set(saved) == {4, 8}
    assert [row["skipped"] for row in rows] == [1, 0, 2, 0]
    assert [row.get("loss") for row in rows] == [1.0, 3.5, None, 7.5]


def test_too_many_skipped_steps_in_a_row_stop_the_run(tmp_path):
    with pytest.raises(NonFiniteLoss, match=r"from step 6 on \(4 in a row\)"):
        run(tmp_path, skipping([2, 3, 4, 6, 7, 8, 9, 10]), stop=20, max_skipped=4)


def test_members_of_a_sweep_are_counted_apart(tmp_path):
    """One member fails for ever; the run goes on for the other and stops when both fail."""

    def step(state, batch, key):
        bad = jnp.array([True, False]) | (state >= 8)
        loss = jnp.where(bad, jnp.nan, jnp.array([1.0, 2.0]))
        return state + 1, {"loss": loss, "skipped": bad.astype(int)}

    class Log:
        rows: ClassVar[list] = []

        def write(self, step, metrics):
            self.rows.append(metrics)

    with pytest.raises(NonFiniteLoss, match="from step 9 on"), progress("t", 20) as advance:
        fit(
            jnp.float32(0), step, itertools.count(), jax.random.key(0), start=0, stop=20,
            log=Log(), log_every=2, checkpoint=lambda *_: None, checkpoint_every=20,
            advance=advance, max_skipped=3,
        )  # fmt: skip
    assert [row["skipped"].tolist() for row in Log.rows] == [[2, 0]] * 4 + [[2, 2]]
    np.testing.assert_array_equal([row["loss"][1] for row in Log.rows[:4]], 2.0)


def test_a_run_that_is_told_to_stop_saves_first(tmp_path):
    saved = {}
    with pytest.raises(Preempted, match="stopped at step 3 of 20"), progress("t", 20) as advance:
        fit(
            jnp.float32(0), count, itertools.count(), jax.random.key(0), start=0, stop=20,
            log=MetricLog(tmp_path), log_every=10,
            checkpoint=lambda done, state: saved.update({done: float(state)}),
            checkpoint_every=5, advance=advance, stopping=lambda done: done >= 3,
        )  # fmt: skip
    assert saved == {3: 3.0}
