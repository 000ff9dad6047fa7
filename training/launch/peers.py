"""How the launchers of several machines find each other, and notice that one is gone.

Every launcher keeps a connection to the first one while its workers run. A connection that ends
without the word ``done`` means that the launcher at its other end has failed or is dead.
"""

from __future__ import annotations

import contextlib
import json
import socket
import sys
import time
from typing import Any, NamedTuple, Optional

from formats.errors import UserError

WAIT_SEC = 300.0  # for all machines to join
CONNECT_SEC = 60.0  # the first machine may start a little later than the others
LINE_BYTES = 4096
DONE = b"done\n"
# A machine that lost its power closes no connection: ask after 10 s, every 5 s, three times.
KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}


class Plan(NamedTuple):
    """Which processes run on this machine, and how they find the scheduler.

    ``first`` is 1 on the first machine, which has the scheduler and the ``servers``, else 0.
    """

    first: int
    workers: int
    local: int
    first_rank: int
    servers: int
    all_servers: int
    scheduler: tuple[str, int]
    host: str
    peers: list[socket.socket]

    def variables(self, role: str) -> dict[str, str]:
        """Return MXNet's environment variables of a process."""
        return {
            "DMLC_ROLE": role,
            "DMLC_PS_ROOT_URI": self.scheduler[0],
            "DMLC_PS_ROOT_PORT": str(self.scheduler[1]),
            "DMLC_NUM_WORKER": str(self.workers),
            "DMLC_NUM_SERVER": str(self.all_servers),
            "DMLC_NODE_HOST": self.host,
        }

    def hear(self, peer: socket.socket) -> Optional[bytes]:
        """Return a word that has come from `peer`; None when it has closed the connection."""
        try:
            return peer.recv(LINE_BYTES) or None
        except OSError:
            return None

    def name(self, peer: socket.socket) -> str:
        """Return the address of `peer`."""
        try:
            return str(peer.getpeername()[0])
        except OSError:
            return "another machine"

    def close(self, done: bool = False) -> None:
        """Leave the others, with a word when all is well."""
        for peer in self.peers:
            with contextlib.suppress(OSError):
                if done:
                    peer.sendall(DONE)
            peer.close()


def free_port(address: str, port: int = 0) -> int:
    """Return `port`, or one that is free.

    Raises
    ------
    UserError
        When it is in use, or `address` is not one of this machine.
    """
    with _listener(address, port) as listener:
        return int(listener.getsockname()[1])


def gather_machines(address: str, port: int, workers: int, local: int, servers: int) -> Plan:
    """Return the plan of the first machine, when all workers are there.

    Raises
    ------
    UserError
        When the port cannot be used, or not all workers come.
    """
    scheduler = (address, free_port(address, port if local == workers else 0))
    plan = Plan(1, workers, local, 0, servers, servers, scheduler, address, [])
    if local == workers:
        return plan
    rank, counts = local, {}
    with _listener(address, port) as listener:
        where = "{}:{}".format(*listener.getsockname())
        print(f"waiting at {where} for {workers - local} more workers", flush=True)
        end = time.monotonic() + WAIT_SEC
        while rank < workers:
            listener.settimeout(max(0.1, end - time.monotonic()))
            try:
                peer = listener.accept()[0]
            except socket.timeout:
                plan.close()
                raise UserError(
                    f"{rank} of {workers} workers were there after {WAIT_SEC:.0f} s: start the "
                    f"others with --join {where}, or lower -n"
                ) from None
            count = _welcome(peer, workers, workers - rank)
            if count:
                counts[peer] = (rank, count)
                rank += count
    for peer, (first_rank, _) in counts.items():
        _say(peer, {"first_rank": first_rank, "servers": servers, "scheduler": scheduler[1]})
        plan.peers.append(peer)
    return plan


def join_first_machine(where: str, workers: int, local: int) -> Plan:
    """Return the plan of a further machine.

    Raises
    ------
    UserError
        When the first one cannot be reached or has another number of workers in mind.
    """
    host, _, port = where.rpartition(":")
    if not host or not port.isdecimal():
        raise UserError(f"--join {where}: give the first machine as ADDRESS:PORT")
    peer = _connect(host, int(port), where)
    _say(peer, {"workers": workers, "local": local})
    peer.settimeout(WAIT_SEC + CONNECT_SEC)
    answer = _hear_line(peer)
    if answer is None or "error" in answer:
        peer.close()
        reason = answer["error"] if answer else "it has ended before all workers were there"
        raise UserError(f"--join {where}: the first machine says no: {reason}")
    peer.settimeout(None)
    scheduler = (peer.getpeername()[0], int(answer["scheduler"]))
    own = peer.getsockname()[0]
    servers = int(answer["servers"])
    return Plan(0, workers, local, int(answer["first_rank"]), 0, servers, scheduler, own, [peer])


def _listener(address: str, port: int) -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((address, port))
        listener.listen()
    except (OSError, OverflowError, UnicodeError) as error:
        listener.close()
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"--address {address} --port {port}: {reason}. The address must be one of this "
            "machine, and the port free: name another, or leave --port out"
        ) from None
    return listener


def _connect(host: str, port: int, where: str) -> socket.socket:
    end = time.monotonic() + CONNECT_SEC
    told = False
    while True:
        try:
            peer = socket.create_connection((host, port), timeout=10)
            _keep_alive(peer)
            return peer
        except (OSError, OverflowError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            unknown = not isinstance(error, OSError) or isinstance(error, socket.gaierror)
            if unknown or time.monotonic() > end:
                raise UserError(
                    f"--join {where}: {reason}. Start the first machine's command before, with "
                    "its address and --port, and see that no firewall is between"
                ) from None
            if not told:
                print(f"waiting for {where} ({reason})", file=sys.stderr, flush=True)
            told = True
            time.sleep(1)


def _welcome(peer: socket.socket, workers: int, missing: int) -> int:
    """Return how many workers a machine brings; 0 when it cannot be taken, which it is told."""
    peer.settimeout(10)
    offer = _hear_line(peer)
    if not offer or not all(isinstance(offer.get(k), int) for k in ("workers", "local")):
        peer.close()
        return 0
    if offer["workers"] != workers:
        error = f"-n {offer['workers']} there, -n {workers} here; all machines need the same"
    elif not 1 <= offer["local"] <= missing:
        error = f"--local {offer['local']}, but only {missing} of {workers} workers are missing"
    else:
        peer.settimeout(None)
        _keep_alive(peer)
        return int(offer["local"])
    _say(peer, {"error": error})
    peer.close()
    return 0


def _keep_alive(peer: socket.socket) -> None:
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEPALIVE.items():
        if hasattr(socket, name):
            peer.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _say(peer: socket.socket, message: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):
        peer.sendall(json.dumps(message).encode() + b"\n")


def _hear_line(peer: socket.socket) -> Optional[dict[str, Any]]:
    line = b""
    try:
        while not line.endswith(b"\n"):
            data = peer.recv(1)
            if not data or len(line) > LINE_BYTES:
                return None
            line += data
        message = json.loads(line)
    except (OSError, ValueError):
        return None
    return message if isinstance(message, dict) else None
