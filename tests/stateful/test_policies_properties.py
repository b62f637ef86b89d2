"""What holds of retention for any policies and any checkpoints, and of saving for any steps."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from hypothesis import given, settings
from hypothesis import strategies as st

from ckpt_core.hooks import HookContext, HookEvent, HookManager
from ckpt_core.model import Attempt, Checkpoint
from ckpt_core.policies import (
    EverySteps,
    KeepAll,
    KeepBest,
    KeepEvery,
    KeepLast,
    KeepSpaced,
    KeepTagged,
    KeepWithinBytes,
    RetentionContext,
    SavePolicyHook,
    decide,
    worth_remembering,
)

# The same examples on every run, and no limit of time on a machine that is shared.
stable = settings(derandomize=True, deadline=None, max_examples=200)

BEGUN = datetime(2026, 1, 1, tzinfo=UTC)
CONTEXTS = st.builds(
    RetentionContext,
    now=st.just(BEGUN + timedelta(days=60)),
    metric=st.just("loss"),
    mode=st.sampled_from(["min", "max"]),
)
POLICIES = st.lists(
    st.one_of(
        st.builds(KeepAll),
        st.builds(KeepLast, st.integers(1, 5)),
        st.builds(KeepBest, st.integers(1, 5), mode=st.sampled_from(["min", "max", None])),
        st.builds(KeepEvery, steps=st.integers(1, 7)),
        st.builds(KeepEvery, minutes=st.floats(0.5, 5000)),
        st.builds(KeepTagged, st.sampled_from(["*", "a*", "b"])),
        st.builds(KeepSpaced, hourly=st.integers(1, 5), daily=st.integers(0, 5), weekly=st.integers(0, 5)),
        st.builds(KeepWithinBytes, st.integers(1, 1000)),
    ),
    max_size=4,
)


@st.composite
def lineages(draw):
    facts = st.tuples(
        st.integers(1, 3),  # attempt
        st.integers(0, 20),  # step, which may come twice
        st.integers(0, 60 * 24 * 40),  # minutes, in no order: clocks may be set
        st.dictionaries(st.just("loss"), st.sampled_from([0.0, 0.5, 1.0, math.inf, math.nan])),
        st.sets(st.sampled_from(["a1", "a2", "b"])),
        st.booleans(),
        st.integers(0, 300),  # logical bytes
        st.integers(0, 300),  # written bytes
    )
    return [
        Checkpoint(
            id=f"C{number}",
            experiment="digits",
            step=step,
            created_at=BEGUN + timedelta(minutes=minutes),
            attempt=Attempt(attempt, f"A{attempt}", "A1"),
            parent=None,
            key="key",
            digest="digest",
            logical_bytes=logical,
            written_bytes=written,
            tensor_count=1,
            metrics=metrics,
            tags=tuple(sorted(tags)),
            pinned=pinned,
        )
        for number, (attempt, step, minutes, metrics, tags, pinned, logical, written) in enumerate(
            draw(st.lists(facts, max_size=12))
        )
    ]


def kept_by(decisions):
    return {decision.checkpoint.id for decision in decisions if decision.keep}


@stable
@given(POLICIES, lineages(), CONTEXTS)
def test_the_union_keeps_what_any_policy_keeps_and_what_safety_asks_for_and_no_more(
    policies, lineage, context
):
    kept = kept_by(decide(policies, lineage, context))
    by_policies = set().union(*(policy.keep(lineage, context) for policy in policies))
    for_safety = {each.id for each in lineage if each.pinned}
    for_safety |= {max(lineage, key=lambda each: each.order).id} if lineage else set()
    assert kept == (by_policies | for_safety if policies else {each.id for each in lineage})


def saved_one_by_one(policies, lineage, context, *, by_memory):
    """What stands after each save, and how many were remembered at the end."""
    standing, remembered, history = {}, {}, []
    for checkpoint in sorted(lineage, key=lambda each: each.order):
        standing[checkpoint.id] = remembered[checkpoint.id] = checkpoint
        known = remembered if by_memory else standing
        for decision in decide(policies, tuple(known.values()), context):
            if not decision.keep and decision.checkpoint is not checkpoint:
                del standing[decision.checkpoint.id]
                remembered.pop(decision.checkpoint.id, None)
        kept = worth_remembering(policies, tuple(remembered.values()), context)
        remembered = {each.id: each for each in kept}
        history.append(set(standing))
    return history, len(remembered)


@stable
@given(POLICIES, lineages(), CONTEXTS)
def test_what_is_remembered_decides_as_all_would(policies, lineage, context):
    ordered = sorted(lineage, key=lambda each: each.order)
    ticking = [replace(each, created_at=BEGUN + timedelta(hours=n)) for n, each in enumerate(ordered)]
    by_all, _ = saved_one_by_one(policies, ticking, context, by_memory=False)
    by_memory, _ = saved_one_by_one(policies, ticking, context, by_memory=True)
    assert by_memory == by_all


@stable
@given(POLICIES, lineages(), CONTEXTS)
def test_where_clocks_are_set_no_more_is_let_go_by_memory(policies, lineage, context):
    by_all, _ = saved_one_by_one(policies, lineage, context, by_memory=False)
    by_memory, _ = saved_one_by_one(policies, lineage, context, by_memory=True)
    assert all(memory >= every for memory, every in zip(by_memory, by_all, strict=True))


@stable
@given(POLICIES, lineages(), CONTEXTS, st.sets(st.integers(0, 11)))
def test_what_a_policy_lets_go_of_some_it_lets_go_of_more(policies, lineage, context, chosen):
    """What others have saved meanwhile and is not known cannot save what is let go."""
    some = [each for number, each in enumerate(lineage) if number in chosen]
    for policy in policies:
        assert policy.keep(lineage, context).keys() & {each.id for each in some} <= set(
            policy.keep(some, context)
        )


def test_few_are_remembered_of_many():
    policies = [KeepLast(3), KeepBest(2, "loss", "min"), KeepEvery(steps=1), KeepEvery(minutes=1)]
    attempt = Attempt(1, "A1", "A1")
    many = [
        Checkpoint(
            f"C{n:04}",
            "digits",
            n,
            BEGUN + timedelta(hours=n),
            attempt,
            None,
            "key",
            "digest",
            1,
            1,
            1,
            {"loss": n},
        )
        for n in range(500)
    ]
    history, remembered = saved_one_by_one(policies, many, RetentionContext(BEGUN), by_memory=True)
    assert len(history[-1]) == 500
    assert remembered == 5


def test_a_policy_that_does_not_tell_is_shown_all():
    class Odd:
        def keep(self, checkpoints, context):
            return {each.id: "odd" for each in checkpoints[::2]}

        def describe(self, context):
            return "odd"

    context = RetentionContext(BEGUN)
    many = [
        Checkpoint(f"C{n}", "digits", n, BEGUN, Attempt(1, "A1", "A1"), None, "k", "d", 1, 1, 1)
        for n in range(9)
    ]
    assert worth_remembering([KeepAll(), Odd()], many, context) == many
    assert worth_remembering([KeepAll()], many, context) == []


@stable
@given(POLICIES, lineages(), CONTEXTS)
def test_every_checkpoint_is_decided_once_with_a_reason(policies, lineage, context):
    decisions = decide(policies, lineage, context)
    assert [decision.checkpoint for decision in decisions] == sorted(lineage, key=lambda each: each.order)
    assert all(decision.reasons and all(decision.reasons) for decision in decisions)


@stable
@given(POLICIES, lineages(), CONTEXTS)
def test_the_newest_and_the_pinned_stay(policies, lineage, context):
    decisions = decide(policies, lineage, context)
    assert all(decision.keep for decision in decisions if decision.checkpoint.pinned)
    assert not decisions or decisions[-1].keep


@stable
@given(POLICIES, lineages(), CONTEXTS, st.randoms(use_true_random=False))
def test_the_order_of_what_is_given_does_not_matter(policies, lineage, context, random):
    shuffled = list(lineage)
    random.shuffle(shuffled)
    assert decide(policies, shuffled, context) == decide(policies, lineage, context)


@stable
@given(POLICIES, lineages(), CONTEXTS)
def test_what_was_kept_stays_kept_when_asked_again(policies, lineage, context):
    kept = [decision.checkpoint for decision in decide(policies, lineage, context) if decision.keep]
    assert all(decision.keep for decision in decide(policies, kept, context))


@stable
@given(POLICIES, POLICIES, lineages(), CONTEXTS)
def test_a_further_policy_deletes_nothing_that_was_kept(policies, more, lineage, context):
    if policies:
        fewer = kept_by(decide(policies, lineage, context))
        assert fewer <= kept_by(decide(policies + more, lineage, context))


@stable
@given(st.integers(1, 20), st.lists(st.integers(0, 4), max_size=60), st.integers(0, 50))
def test_every_steps_asks_once_for_each_multiple_reached_and_at_no_other_time(n, gaps, begun):
    manager = HookManager([SavePolicyHook(EverySteps(n))])
    manager.fire(HookContext(HookEvent.TRAIN_BEGIN, step=begun))
    step = begun
    for gap in gaps:
        before, step = step, step + gap
        asked = bool(manager.fire(HookContext(HookEvent.STEP_END, step=step)).save_requests)
        assert asked == any(multiple % n == 0 for multiple in range(before + 1, step + 1))
