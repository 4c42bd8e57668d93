"""Artifacts on S3-compatible storage, with a real server."""

from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from longred.errors import ConfigError, MismatchError, PreflightError, StorageError
from longred.runs.record import RunRecord, StageRecord, load_config
from longred.runs.run_store import RunStore
from longred.runs.scope import Scope
from longred.store.artifacts import MANIFEST, Store
from longred.store.remote import Remote


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(server: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    for name, value in {
        "AWS_ENDPOINT_URL": server,
        "AWS_ACCESS_KEY_ID": "longred",
        "AWS_SECRET_ACCESS_KEY": "not-a-secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    name = request.node.name.replace("_", "-")[:60]
    boto3.client("s3").create_bucket(Bucket=name)
    return name


def keys(bucket: str) -> list[str]:
    found = boto3.client("s3").list_objects_v2(Bucket=bucket).get("Contents", [])
    return [each["Key"] for each in sorted(found, key=lambda each: each["LastModified"])]


def fill(folder: Path, work: Path) -> None:
    (folder / "inner").mkdir()
    (folder / "inner" / "a.bin").write_bytes(b"\0\1\2" * 1000)
    (folder / "b.json").write_text("{}")


def never(folder: Path, work: Path) -> None:
    pytest.fail("made again")


def make(store: Store) -> str:
    return store.build("data", {"x": 1}, {}, fill).digest


@pytest.mark.medium
def test_what_one_machine_made_another_takes(bucket: str, tmp_path: Path) -> None:
    url = f"s3://{bucket}/store"
    digest = make(Store(tmp_path / "one", Remote(url)))
    assert set(keys(bucket)) == {
        f"store/data-{digest}/{name}" for name in ("inner/a.bin", "b.json", MANIFEST)
    }
    other = Store(tmp_path / "two", Remote(url))
    found = other.build("data", {"x": 1}, {}, never)
    assert found.reused
    other.verify(found)
    assert (found.folder / "inner" / "a.bin").read_bytes() == b"\0\1\2" * 1000
    assert not list(other.artifacts.glob(".tmp-*"))


def test_the_manifest_goes_last(bucket: str, tmp_path: Path) -> None:
    remote = Remote(f"s3://{bucket}/store")
    store = Store(tmp_path / "one")
    artifact = store.build("data", {"x": 1}, {}, fill)
    (artifact.folder / "b.json").unlink()  # so that the upload fails half-way
    with pytest.raises(StorageError, match=r"store\.remote: data-\w+ could not be sent"):
        remote.send(artifact.folder, artifact.read_json(MANIFEST)["files"])
    assert MANIFEST not in "".join(keys(bucket))
    assert not remote.has(artifact.folder.name)


def test_what_was_not_sent_is_sent_by_the_next_run(bucket: str, tmp_path: Path) -> None:
    digest = make(Store(tmp_path / "one"))
    remote = Remote(f"s3://{bucket}/store")
    assert Store(tmp_path / "one", remote).build("data", {"x": 1}, {}, never).reused
    assert remote.has(f"data-{digest}")


def test_a_changed_byte_is_refused(bucket: str, tmp_path: Path) -> None:
    url = f"s3://{bucket}/store"
    digest = make(Store(tmp_path / "one", Remote(url)))
    boto3.client("s3").put_object(
        Bucket=bucket, Key=f"store/data-{digest}/inner/a.bin", Body=b"\0\1\3" * 1000
    )
    other = Store(tmp_path / "two", Remote(url))
    with pytest.raises(MismatchError, match=r"a\.bin: differs from its manifest"):
        other.build("data", {"x": 1}, {}, never)
    assert other.find("data", digest) is None


def test_a_manifest_cannot_leave_the_store(bucket: str, tmp_path: Path) -> None:
    digest = Store(tmp_path).digest("data", {"x": 1}, {})
    boto3.client("s3").put_object(
        Bucket=bucket,
        Key=f"store/data-{digest}/{MANIFEST}",
        Body=b'{"files": {"../../outside": {"sha256": "", "size_bytes": 0}}}',
    )
    other = Store(tmp_path / "two", Remote(f"s3://{bucket}/store"))
    with pytest.raises(MismatchError, match="outside it"):
        other.build("data", {"x": 1}, {}, never)
    assert [path.name for path in tmp_path.rglob("outside*")] == []


@pytest.mark.medium
def test_a_dry_run_knows_what_can_be_fetched_and_fetches_nothing(
    bucket: str, tmp_path: Path
) -> None:
    url = f"s3://{bucket}/store"
    digest = make(Store(tmp_path / "one", Remote(url)))
    reasons = []
    stage = StageRecord("data", "data")
    record = RunRecord("dry-run", "demo", [], {}, "d", stages=[stage])
    dry = RunStore(tmp_path / "two", Scope(is_dry=True), record, Remote(url))
    assert dry.build("data", {"x": 1}, {}, never).digest == digest
    reasons.append(stage.reason)
    assert dry.build("data", {"x": 2}, {}, never).digest != digest
    reasons.append(stage.reason)
    assert reasons == [None, "not made before"]
    assert not (tmp_path / "two").exists()


def test_a_place_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "longred")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-a-secret")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(PreflightError, match=r"store\.remote: cannot be reached \(s3://nowhere/x"):
        Store(tmp_path, Remote("s3://nowhere/x")).build("data", {}, {}, never)


def test_an_address_nobody_knows() -> None:
    with pytest.raises(ConfigError, match=r"store\.remote: nonsense://x cannot be used"):
        Remote("nonsense://x")


def test_the_environment_says_where(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGRED_STORE_REMOTE", "s3://bucket/store")
    assert load_config("demo").store.remote == "s3://bucket/store"
    assert load_config("demo", ["store.remote=null"]).store.remote is None
