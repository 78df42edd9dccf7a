"""Quart's lifespan, run by our server, which serves without the lifespan protocol of ASGI.

It consists of the application's nursery, in which `add_background_task` starts tasks, and the hooks
of blueprints (`before_app_serving`, `while_app_serving`, `after_app_serving`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
from quart_trio import QuartTrio

from repeater.errors import open_service_nursery


@asynccontextmanager
async def open_lifespan(app: QuartTrio, grace: float) -> AsyncIterator[None]:
    """Run the hooks that come before serving, then the block, then the hooks that come after it.

    The hooks after the block run even if the block is cancelled; they and the background tasks get
    `grace` seconds. An error of a hook is raised as the error of any task would be.
    """
    app.config["BACKGROUND_TASK_SHUTDOWN_TIMEOUT"] = grace
    stopping, ended = trio.Event(), trio.Event()
    async with open_service_nursery() as nursery:
        await nursery.start(_live, app, stopping, ended)
        try:
            yield
        finally:
            stopping.set()
            with trio.CancelScope(shield=True, deadline=trio.current_time() + grace):
                await ended.wait()


async def _live(
    app: QuartTrio,
    stopping: trio.Event,
    ended: trio.Event,
    task_status: trio.TaskStatus[None],
) -> None:
    serving = False
    try:
        async with trio.open_nursery() as app.nursery:
            await app.startup()
            serving = True
            task_status.started()
            await stopping.wait()  # no deadline: it waits as long as the server serves
            await app.shutdown()
    except BaseExceptionGroup as group:
        if serving or len(group.exceptions) > 1:
            raise
        raise group.exceptions[0] from None  # from a hook, before serving began
    finally:
        ended.set()
