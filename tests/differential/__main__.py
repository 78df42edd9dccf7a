"""`just differential`: conversations from seeds, and what differs."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections import Counter
from collections.abc import Sequence

import trio

from tests.differential.compare import Verdict
from tests.differential.generator import conversation
from tests.differential.run import Runner, running
from tests.differential.smallest import smallest
from tests.differential.steps import Conversation, Moment


def main() -> int:
    """Run it; the exit status is 1 if something differs that no kind explains."""
    parser = argparse.ArgumentParser(prog="just differential", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="the first seed")
    parser.add_argument("--conversations", type=int, default=300, help="how many, from it on")
    parser.add_argument("--whole", action="store_true", help="do not look for the smallest")
    parser.add_argument("--show", action="store_true", help="print all that is said")
    options = parser.parse_args()
    program = shutil.which("centrifugo")
    if program is None:
        print("no centrifugo on the PATH", file=sys.stderr)
        return 2
    seeds = range(options.seed, options.seed + options.conversations)
    return trio.run(_run, program, [conversation(seed) for seed in seeds], options)


async def _run(
    program: str, conversations: Sequence[Conversation], options: argparse.Namespace
) -> int:
    async with running(program) as runner:
        if options.show:
            for one in conversations:
                await _show(runner, one)
        found = await runner.verdicts(conversations)
        met = Counter(name for _, verdict in found for name in verdict.kinds)
        differing = [(one, verdict) for one, verdict in found if verdict.difference]
        for one, verdict in differing:
            if not options.whole:
                one, verdict = await smallest(one, verdict, runner.glance)
            print(_told(one, verdict), flush=True)
    same = sum(not verdict.kinds and not verdict.difference for _, verdict in found)
    steps = sum(len(one.steps) for one in conversations)
    print(f"{len(found)} conversations of {steps} steps: {same} equal, {len(differing)} differ")
    for name, count in met.most_common():
        print(f"  {count:5} {name}")
    return bool(differing)


async def _show(runner: Runner, conversation: Conversation) -> None:
    theirs, ours = await runner.hold(conversation)
    for step, their, our in zip(conversation.steps, theirs, ours, strict=True):
        print(_text(step))
        if their == our:
            print("  both", _text(our))
        else:
            print("  Centrifugo", _text(their), "\n  Repeater  ", _text(our))


def _told(conversation: Conversation, verdict: Verdict) -> str:
    moment = verdict.difference
    assert moment is not None
    lines = [f"{conversation.name}, {conversation.codec}:"]
    lines += [f"  {_text(step)}" for step in conversation.steps]
    lines += _sides(moment)
    return "\n".join(lines)


def _sides(moment: Moment) -> Sequence[str]:
    lines = list[str]()
    for actor in sorted({*moment.theirs, *moment.ours}):
        their, our = moment.theirs.get(actor), moment.ours.get(actor)
        if their != our:
            lines += [
                f"    Centrifugo to {actor}: {_text(their)}",
                f"    Repeater to {actor}:   {_text(our)}",
            ]
    return lines


def _text(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, default=repr)


if __name__ == "__main__":
    sys.exit(main())
