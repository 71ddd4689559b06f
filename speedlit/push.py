"""A finished export to a model hub."""

from __future__ import annotations

from pathlib import Path

from speedlit.errors import SpeedlitError, UsageError


def check_name(name: str) -> str:
    """A repository's name, ``owner/name``, before any work is done for it.

    Raises:
        UsageError: the hub would refuse it.
    """
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UsageError(f"--push {name!r} is no name of a repository; write OWNER/NAME") from error
    if name.count("/") != 1:
        raise UsageError(f"--push {name!r} names no owner; write OWNER/NAME")
    return name


def push(folder: Path, name: str, private: bool = True) -> str:
    """Upload ``folder`` to the repository ``name``, made if it is not there; returns its address. The token is the one of ``hf auth login`` or HF_TOKEN.

    Raises:
        SpeedlitError: no connection, no token or no right to write; the folder stays.
    """
    import httpx2
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

    api = HfApi(library_name="speedlit")
    try:
        address = api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, commit_message="Export of speedlit")
    except (HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled, httpx2.HTTPError, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise SpeedlitError(f"{folder} is finished, but {name} could not be written to the hub: {reason}; then: hf upload {name} {folder}") from error
    return str(address)
