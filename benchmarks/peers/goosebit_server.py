"""gooseBit as it is shipped, on a new SQLite file with devices in it. Runs in the environment of that name.

    python goosebit_server.py FILE DEVICES PORT

Settings are gooseBit's own, through its environment variables. The devices are registered, at rest and up to date.
"""

import asyncio
import os
import sqlite3
import sys


def main(file: str, devices: int, port: int) -> None:
    """Make the database and serve."""
    os.environ |= {"GOOSEBIT_DB_URI": f"sqlite://{file}", "GOOSEBIT_PORT": str(port)}
    import uvicorn
    from goosebit import app
    from goosebit.db.config import TORTOISE_CONF
    from goosebit.db.models import Hardware, UpdateStateEnum
    from tortoise import Tortoise

    async def prepare() -> int:
        await Tortoise.init(config=TORTOISE_CONF)
        await Tortoise.generate_schemas()
        hardware = (await Hardware.get_or_create(model="default", revision="default"))[0]
        await Tortoise.close_connections()
        return int(hardware.id)

    hardware = asyncio.run(prepare())
    database = sqlite3.connect(file)
    rows = (
        (f"{number:032x}", False, hardware, "default", 3, int(UpdateStateEnum.FINISHED), "1.0.0")
        for number in range(devices)
    )
    database.executemany(
        "INSERT INTO device (id, force_update, hardware_id, feed, update_mode, last_state, sw_version) "
        "VALUES (?, ?, ?, ?, ?, ?, ?)",
        rows,
    )
    database.commit()
    database.close()
    uvicorn.run(app, host="127.0.0.1", port=port)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
