"""A private Kafka for tests: one real broker in KRaft mode on free ports (see tools/kafka)."""

from __future__ import annotations

import socket
import subprocess
import time
from pathlib import Path

from postgres import NotInstalledError, free_port

NEEDED = "Kafka's broker (make packages, which needs Java and Maven)"
JAVA = ["java", "-Xmx192m", "-Xshare:auto", "-XX:TieredStopAtLevel=1"]


class Broker:
    """A running broker; ``address`` is what clients are given first."""

    def __init__(self, folder: Path) -> None:
        found = sorted((Path(__file__).parents[1] / ".tools" / "kafka").glob("*"))
        if not found:
            raise NotInstalledError(NEEDED)
        self._classes = ["-cp", f"{found[-1].resolve()}/*"]
        port, controller = free_port(), free_port()
        self.address = f"127.0.0.1:{port}"
        settings = {
            "process.roles": "broker,controller",
            "node.id": 1,
            "controller.quorum.voters": f"1@127.0.0.1:{controller}",
            "listeners": f"PLAINTEXT://{self.address},CONTROLLER://127.0.0.1:{controller}",
            "controller.listener.names": "CONTROLLER",
            "log.dirs": folder / "data",
            "num.partitions": 1,
            "offsets.topic.replication.factor": 1,
            "offsets.topic.num.partitions": 1,
            "group.initial.rebalance.delay.ms": 0,
        }
        self._file = folder / "server.properties"
        self._file.write_text("".join(f"{key}={value}\n" for key, value in settings.items()))
        tool = "kafka.tools.StorageTool"
        made = [*JAVA, *self._classes, tool, "format", "-t", "5L6g3nShT-eMCtK--X86sw", "-c", str(self._file)]
        subprocess.run(made, check=True, capture_output=True)
        self._log = (folder / "broker.log").open("w")
        command = [*JAVA, *self._classes, "kafka.Kafka", str(self._file)]
        self._process = subprocess.Popen(command, stdout=self._log, stderr=self._log)
        deadline = time.monotonic() + 120
        while not self._listens():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"Kafka does not start: {Path(self._log.name).read_text()[-2000:]}")
            time.sleep(0.1)

    def _listens(self) -> bool:
        host, _, port = self.address.partition(":")
        try:
            socket.create_connection((host, int(port)), timeout=1).close()
        except OSError:
            return False
        return True

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        self._log.close()
