import math

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from regularized_lopt import upstream
from regularized_lopt.outer_training import curriculum as lib


def play(curriculum, losses, baselines=()):
    """Feeds validation losses; returns the decisions and the last state."""
    state, decisions, baselines = lib.CurriculumState(), [], iter(baselines)
    for loss in losses:
        if curriculum.needs_baseline(state):
            state = curriculum.set_baseline(state, next(baselines, float("inf")))
        state, decision = curriculum.on_validation(state, loss)
        decisions.append(decision)
        if state.finished:
            break
    return decisions, state


def test_follows_chen_et_al():
    curriculum = lib.Curriculum((100, 200, 500), validation_period=100, min_validations=3)
    assert curriculum.trajectory_length(lib.CurriculumState()) == 100
    assert curriculum.validation_length(lib.CurriculumState()) == 200
    # Better: keep. Not better before the third validation: stay. Not better at the third: restore,
    # advance.
    decisions, state = play(curriculum, [2.0, 1.0, 1.5])
    assert [d.is_best for d in decisions] == [True, True, False]
    assert decisions[-1].restore_best
    assert decisions[-1].next_stage
    assert state.stage == 1
    assert curriculum.needs_baseline(state)
    # A stage that improves goes on past three validations.
    decisions, state = play(curriculum, [5.0, 4.0, 3.0, 2.0])
    assert not any(d.next_stage for d in decisions)
    # A stage that never beats what it started from ends training, with the best theta put back.
    losses = [2.0, 1.0, 1.5, 9.0, 9.0, 9.0]
    decisions, state = play(curriculum, losses, baselines=[0.5])
    assert state.finished
    assert decisions[-1].restore_best
    assert not decisions[-1].next_stage


def test_the_last_stage_is_validated_at_its_own_length():
    curriculum = lib.Curriculum((100, 200), validation_period=100)
    assert curriculum.validation_length(lib.CurriculumState(stage=1)) == 200


def test_max_validations_bounds_a_stage_even_while_it_improves():
    curriculum = lib.Curriculum((100, 200), min_validations=2, max_validations=2)
    decisions, state = play(curriculum, [3.0, 2.0])
    assert decisions[-1].next_stage
    assert decisions[-1].is_best
    assert state.stage == 1


def test_validation_is_due_every_period_of_epochs():
    curriculum = lib.Curriculum((100, 200), validation_period=(2, 1))
    # An epoch of 100 inner steps is five unrolls of 20.
    due = [
        s
        for s in range(1, 31)
        if curriculum.validation_due(lib.CurriculumState(steps_in_stage=s), 20)
    ]
    assert due == [10, 20, 30]
    assert curriculum.validation_due(lib.CurriculumState(stage=1, steps_in_stage=10), 20)


@given(st.lists(st.one_of(st.floats(0, 10), st.just(float("nan"))), min_size=1, max_size=60))
def test_best_theta_is_always_that_of_the_lowest_loss_and_the_run_is_bounded(losses):
    curriculum = lib.Curriculum((1, 2, 3), min_validations=2, max_validations=4)
    state, best, since_stage = lib.CurriculumState(), float("inf"), 0
    for loss in losses:
        state, decision = curriculum.on_validation(state, loss)
        since_stage += 1
        assert decision.is_best == (loss < best)
        best = best if math.isnan(loss) else min(best, loss)
        assert since_stage <= 4
        if state.finished:
            assert decision.restore_best
            return
        if decision.next_stage:
            best, since_stage = float("inf"), 0
    assert len(losses) <= 12


def test_staged_schedule_is_piecewise_constant_in_the_outer_step():
    schedule = lib.StagedTruncationSchedule((10, 20, 40), (5, 8))
    lengths = [
        int(schedule.init(jax.random.PRNGKey(0), upstream.OuterState(jnp.asarray(step))).length)
        for step in (0, 4, 5, 7, 8, 100)
    ]
    assert lengths == [10, 10, 20, 20, 40, 40]


def test_refuses_bad_input():
    with pytest.raises(ValueError, match="2 entries for 3 train_lengths"):
        lib.Curriculum((1, 2, 3), validation_period=(1, 2))
    with pytest.raises(ValueError, match="num_validation_tasks = 0"):
        lib.Curriculum(num_validation_tasks=0)
    with pytest.raises(ValueError, match="does not divide the trajectory of 100"):
        lib.Curriculum((100,)).check(30)
    with pytest.raises(ValueError, match="increasing boundaries"):
        lib.StagedTruncationSchedule((1, 2), (3, 4))
