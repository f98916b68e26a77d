"""A served stand-in for a policy, and a client of it: loaded where a test asks for them."""

import pytest


@pytest.fixture(scope="module")
def server():
    from tests.runtime.stand_ins.served import serving

    with serving(max_clients=8) as server:
        yield server


@pytest.fixture
def driver(server):
    from tests.runtime.stand_ins.served import client, leave

    one = client(server)
    yield one
    leave(one)
