import subprocess
import sys

import pytest

from convlstm.lock import claimed


@pytest.mark.skipif(sys.platform == "win32", reason="no such locks there")
def test_a_folder_has_one_writer_until_its_process_is_gone(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from convlstm.lock import claimed\n"
        "with claimed(Path(sys.argv[1])):\n    print('mine', flush=True)\n    time.sleep(600)"
    )
    other = subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE)
    try:
        assert other.stdout.readline() == b"mine\n"
        with pytest.raises(ValueError, match="another process is writing to"), claimed(tmp_path):
            pass
    finally:
        other.kill()
        other.wait()
        other.stdout.close()
    for _ in range(2):
        with claimed(tmp_path):
            pass
        assert not list(tmp_path.iterdir())
