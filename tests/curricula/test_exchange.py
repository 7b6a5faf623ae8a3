"""Jobs are done once for all hosts, and what one host has is what all have."""

import numpy as np
import pytest

from curricula.exchange import by_hosts
from tests.launch import ended, host_file, start


def test_a_host_alone_does_all_jobs_in_their_order():
    found = list(by_hosts(None, [3, 1, 2], lambda n: {"n": np.array([n])}))
    assert [of["n"].item() for of in found] == [3, 1, 2]


TWO = """
import sys
from pathlib import Path
import numpy as np
from agp.hosts import joined, told
from curricula.exchange import by_hosts, exchange, handed
done, root = [], Path(sys.argv[1])
with joined(told(), {}, wait=20) as group:
    rank, folder = group.rank(), root / str(group.rank())
    folder.mkdir()
    def work(n):
        done.append(n)
        none = np.zeros((0, 3), np.int8)
        return {"a": np.arange(n, dtype=np.float64)[::-1] / 3, "b.c": np.array([[n > 2]]), "none": none}
    found = list(by_hosts(group, [5, 0, 2], work))
    assert done == ([0] if rank else [5, 2]), done
    for n, of in zip([5, 0, 2], found, strict=True):
        assert np.array_equal(of["a"], np.arange(n)[::-1] / 3) and of["a"].dtype == np.float64
        assert of["b.c"].tolist() == [[n > 2]] and of["none"].shape == (0, 3) and of["none"].dtype == np.int8
    one, both, none = (folder / name for name in ("one", "both", "none"))
    both.write_bytes(b"of %d" % rank)
    if rank:
        one.write_bytes(b"of 1 alone")
    exchange(group, [one, both, none])
    assert (one.read_bytes(), both.read_bytes()) == (b"of 1 alone", b"of %d" % rank) and not none.exists()
    handed(group, 1, [both])
    assert both.read_bytes() == b"of 1"
"""


@pytest.mark.slow
def test_two_hosts_share_jobs_and_files(tmp_path):
    file = host_file(tmp_path)
    for code, said in map(ended, [start(["-c", TWO, str(tmp_path)], rank, file) for rank in range(2)]):
        assert code == 0, said
