"""Starts a thread when it is imported."""

from tests.support.forked import start_thread

start_thread()
