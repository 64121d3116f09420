"""Storages on real servers; skipped with a reason where there is none (an error with --require-services)."""

from __future__ import annotations

import gc
import importlib.util
import os
import uuid

import pytest


def _first_reachable(urls, connect):
    errors = []
    for url in urls:
        try:
            connect(url)
            return url, None
        except Exception as error:
            errors.append(f"{url}: {error}".splitlines()[0])
    return None, "; ".join(errors)


@pytest.fixture(scope="session")
def postgres_server(missing):
    if not _installed("psycopg"):
        missing("the package psycopg is not installed (extra 'services')")
    import psycopg

    given = os.environ.get("AZNAS_TEST_POSTGRES")
    urls = [given] if given else [f"postgresql://postgres{p}@127.0.0.1:5432/postgres" for p in ("", ":postgres")]
    url, reason = _first_reachable(urls, lambda url: psycopg.connect(url, connect_timeout=60).close())
    if url is None:
        missing(f"no PostgreSQL server ({reason})")
    return url


@pytest.fixture
def postgres_storage(postgres_server):
    """URL of a fresh database, dropped afterwards."""
    import psycopg

    name = f"aznas_test_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(postgres_server, autocommit=True) as connection:
        connection.execute(f"create database {name}")
    yield postgres_server.replace("postgresql://", "postgresql+psycopg://").rsplit("/", 1)[0] + f"/{name}"
    gc.collect()  # Optuna leaves connections to it; found in a later test that allows no warnings, they would fail it
    with psycopg.connect(postgres_server, autocommit=True) as connection:
        connection.execute(f"drop database {name} with (force)")


@pytest.fixture
def redis_url(missing):
    if not _installed("redis"):
        missing("the package redis is not installed (extra 'services')")
    import redis

    url = os.environ.get("AZNAS_TEST_REDIS", "redis://127.0.0.1:6379")
    url, reason = _first_reachable([url], lambda url: redis.Redis.from_url(url, socket_connect_timeout=60).ping())
    if url is None:
        missing(f"no Redis server ({reason})")
    return url


def _installed(name):
    return importlib.util.find_spec(name) is not None
