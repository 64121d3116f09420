"""Optuna's gRPC proxy: a call that fails because the connection to it is lost is tried again, for a bounded time."""

from __future__ import annotations

from urllib.parse import urlsplit

from optuna_aznas._optuna import GrpcStorageProxy
from optuna_aznas.storage.retries import Retries, RetryingStorage, retries_calls

_PORT = 13000  # Optuna's default


def open_grpc_proxy(url: str, patience: float) -> GrpcStorageProxy:
    """Open a connection to a gRPC proxy.

    Args:
        url: As in :func:`~optuna_aznas.open_storage`.
        patience: Likewise.
    """
    return GrpcProxy(url, patience)


@retries_calls()
class GrpcProxy(RetryingStorage, GrpcStorageProxy):
    """A ``GrpcStorageProxy`` that outlives a restart of the proxy.

    Args:
        url: As in :func:`~optuna_aznas.open_storage`.
        patience: Likewise.
    """

    def __init__(self, url: str, patience: float) -> None:
        self._retries = Retries(url, patience, _is_unavailable)
        server = urlsplit(url)
        super().__init__(host=server.hostname or "localhost", port=server.port or _PORT)


def _is_unavailable(error: BaseException) -> bool:
    """Whether the proxy cannot be reached, or has stopped in the middle of a call."""
    import grpc  # type: ignore[import-untyped]

    if not isinstance(error, grpc.RpcError):
        return False
    # A connection that breaks in the middle of a call has the code UNKNOWN at times, as any error of the proxy's own
    # has (https://github.com/grpc/grpc/issues/34076).
    is_broken = error.code() == grpc.StatusCode.UNKNOWN and "Stream removed" in (error.details() or "")
    return is_broken or error.code() == grpc.StatusCode.UNAVAILABLE
