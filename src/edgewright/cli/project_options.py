"""Which project file and which device class a verb works with."""

from pathlib import Path

from edgewright.contract.config.project import Project, load_project
from edgewright.contract.device_class import DEFAULT_DEVICE_CLASS, DeviceClass
from edgewright.contract.errors import ProjectError

__all__ = ["PROJECT_FILE", "device_class_of", "find_project"]

PROJECT_FILE = "edgewright.toml"


def find_project(named: Path | None) -> Project | None:
    """Return the project file that was named, or the one in this folder, or None.

    Raises:
        ProjectError: It cannot be read or holds what it may not.
    """
    if named is not None:
        return load_project(named)
    return load_project(Path(PROJECT_FILE)) if Path(PROJECT_FILE).is_file() else None


def device_class_of(name: str | None, project: Project | None) -> DeviceClass:
    """Return the device class of that name; without a name the project's only one, or the default.

    Raises:
        ProjectError: There is no such class, or the project has several and none was named.
    """
    if project is None:
        if name in (None, DEFAULT_DEVICE_CLASS.name):
            return DEFAULT_DEVICE_CLASS
        raise ProjectError(
            f"device class {name!r} is not known: there is no {PROJECT_FILE} here",
            remedy="Write one with 'edgewright init', or name it with --project.",
        )
    names = [device.name for device in project.device_classes]
    if name is None and len(names) == 1:
        name = names[0]
    if name is None and names and DEFAULT_DEVICE_CLASS.name not in names:
        raise ProjectError(
            f"the project file has the device classes {', '.join(names)} and none was named",
            remedy="Name one with --device-class.",
        )
    return project.device_class(name or DEFAULT_DEVICE_CLASS.name)
