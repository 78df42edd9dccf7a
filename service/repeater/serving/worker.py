"""A worker: a server like any other, whose broker and presence are its supervisor's.

With an engine that nodes share, they are its own.
"""

from __future__ import annotations

import os
import pickle
import socket
import sys
import traceback
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from repeater.config import ConfigError, CurrentSettings, Settings, WorkerPlace
from repeater.config.extension import ExtensionError
from repeater.errors import open_service_nursery
from repeater.log import configure_log, get_logger, open_log_output, share_log
from repeater.serving import early_signals
from repeater.serving.assembly import ServerNodeParts, parts_of
from repeater.serving.collector import settle_heap
from repeater.serving.early_signals import CUT, RELOAD, STOP
from repeater.serving.errors import ServeError
from repeater.serving.reports import Reports
from repeater.serving.run import Load, Run
from repeater.serving.server import Server, open_server
from repeater.serving.stores import open_stores
from repeater.workers.worker import WorkerLink, open_worker_link

if TYPE_CHECKING:
    from repeater.serving.worker_process import Start

_log = get_logger("server")

_DIVIDED: Final = ("connections", "connection_rate", "connection_burst")


def run_worker(place: WorkerPlace, load: Load) -> int:
    """Serve as a worker until a signal or the end of the supervisor; return the exit status.

    Args:
        place: What the supervisor passed to this process.
        load: Reads the settings again at a SIGHUP, as the supervisor does.
    """
    reports = Reports(place.report)
    try:
        start: Start = pickle.load(sys.stdin.buffer)
        share_log(place.number)
        open_log_output()
        configure_log(start.settings.log_level, start.settings.log_format)
        settle_heap()
        early_signals.keep_all()
        trio.run(_serve, place, start, load, reports)
    except SystemExit:
        raise
    except BaseException as error:  # the boundary of the process: the supervisor logs it
        if mistake := _mistake_in(error):
            reports.mistake(str(mistake))
        else:
            reports.failed(traceback.format_exc())
        return 1
    return 0


def _mistake_in(error: BaseException) -> BaseException | None:
    """The error that the user can mend, if that is what it is."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error if isinstance(error, (ConfigError, ServeError, ExtensionError)) else None


async def _serve(place: WorkerPlace, start: Start, load: Load, reports: Reports) -> None:
    def own(settings: Settings) -> Settings:
        return _share(settings, place.number, start.workers)

    settings = own(start.settings)
    run = Run(lambda: own(load()), reports, has_supervisor=True)
    awaited = [one for one in (*STOP, RELOAD, CUT) if one is not None]
    with trio.open_signal_receiver(*awaited) as signals:
        for number in early_signals.take_kept():
            run.take(number)
        async with open_service_nursery() as nursery:
            nursery.start_soon(run.follow, signals)
            async with (
                open_worker_link(_stream(place.link)) as link,
                # It ends before the link does: closed by a mistake of the user's, which the
                # supervisor is told next, the link would be the news that this worker leaves.
                open_service_nursery() as watch,
            ):
                watch.start_soon(_end_with, link, run)
                current = CurrentSettings(settings)
                async with _parts(link, current, place.number) as parts:
                    before = partial(_wait_for_word, reports)
                    server = open_server(
                        settings, current=current, before_accepting=before, **parts
                    )
                    await run.serve(_say_nothing, server)
                watch.cancel_scope.cancel("the worker has ended")
    _log.info("stopped")


async def _wait_for_word(reports: Reports) -> None:
    """Say that all is ready, and wait for the supervisor's word to accept: the end of our input."""
    reports.ready()
    async with trio.lowlevel.FdStream(os.dup(sys.stdin.fileno())) as words:
        async for _ in words:
            pass


async def _end_with(link: WorkerLink, run: Run) -> None:
    """End the worker with its supervisor: clients come back to a server that is whole."""
    run.stop(reason=await link.wait_ended())


def _stream(descriptor: int) -> trio.SocketStream:
    sock = socket.socket(fileno=descriptor)
    sock.set_inheritable(False)
    return trio.SocketStream(trio.socket.from_stdlib_socket(sock))


@asynccontextmanager
async def _parts(
    link: WorkerLink, current: CurrentSettings, number: int
) -> AsyncIterator[ServerNodeParts]:
    """The parts of the node that are the supervisor's; no events if nobody is told of them.

    A worker whose engine is shared has parts of its own: it is a node like those of other machines,
    and the supervisor only watches it.
    """
    if current().engine_in_force == "valkey":
        async with open_stores(current, worker=number) as stores:
            yield {**parts_of(stores), "siblings": link.control}
        return
    yield {
        "broker": link.broker,
        "presence": link.presence,
        "denials": link.denials,
        "events": link.events if current().callback_options().event_url else None,
        "control": link.control,
    }


def _say_nothing(_server: Server) -> None:
    """The supervisor says where the server listens."""


def _share(settings: Settings, number: int, workers: int) -> Settings:
    """The settings with this worker's share of what all workers may do together.

    Where the engine is shared nobody counts over the workers of one machine, so each admits its
    part of what is counted in all.
    """
    lines = settings.node_options().connection_log_limit
    share = lines // workers + (number <= lines % workers)
    own: dict[str, object] = {"connection_log_limit": share}
    if settings.engine_in_force == "valkey":
        own["node_name"] = f"{settings.node}-{number}"
        divided = {name: -(-getattr(settings.limits, name) // workers) for name in _DIVIDED}
        own["limits"] = settings.limits.model_copy(update=divided)
    return settings.model_copy(update=own)
