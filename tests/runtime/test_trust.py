"""Who may sign what this machine runs. Oracle: OpenSSL reads our keys and checks signatures."""

import base64
import os
import shutil
import stat
import subprocess
from hashlib import sha256

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

import runtime
from export.errors import ExportError
from export.release.config import KeysConfig, SignConfig
from export.release.signing import make_keys, sign
from runtime.__main__ import main
from runtime.bundle import read_bundle
from runtime.errors import OutputError
from runtime.storage import trust
from runtime.storage.signature import MOST_NUMBER, read_signature
from tests import fuzz_release
from tests.runtime.test_declarations import family
from tests.runtime.test_refused_manifests import INPUTS
from tests.test_command_lines import as_nobody, drop_rights

NUMBER = 41


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch):
    folder = tmp_path / "trust"
    monkeypatch.setenv("ANCHORVLA_TRUST", str(folder))
    return folder


@pytest.fixture
def keys(tmp_path):
    """Folders of pairs, by name."""
    made = {}

    def get(name, development=False):
        if name not in made:
            made[name] = tmp_path / name
            make_keys(KeysConfig(out=made[name], development=development))
        return made[name]

    return get


@pytest.fixture
def bundle(tmp_path):
    return family(tmp_path / "bundle", INPUTS)


def signed(bundle, keys, number=NUMBER):
    sign(SignConfig(bundle=bundle, key=keys / "release.key", number=number))
    return bundle


def refused(bundle):
    with pytest.raises(runtime.BundleError) as caught:
        read_bundle(bundle)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_machine_that_trusts_nobody_runs_everything(bundle, keys):
    assert read_bundle(bundle) == read_bundle(signed(bundle, keys("a")))


def test_a_machine_that_trusts_a_key_runs_what_it_signed_and_nothing_else(bundle, keys, store):
    ours = trust.add(keys("a") / "release.pub")
    theirs = trust.read_key(keys("b") / "release.pub")
    assert refused(bundle) == (
        f"{bundle}: not signed, and this machine runs what {ours.name[:16]} release signed "
        f"({store}); sign it on the workstation: make sign BUNDLE=..."
    )
    words = f"signed by the key {theirs.name[:16]}, but this machine runs what {ours.name[:16]} rel"
    assert words in refused(signed(bundle, keys("b")))
    assert read_bundle(signed(bundle, keys("a"))).path == bundle
    # The other one is trusted as well now, and then the first no more.
    trust.add(keys("b") / "release.pub")
    read_bundle(bundle)
    read_bundle(signed(bundle, keys("b")))
    trust.remove(theirs.name)
    assert "but this machine runs what" in refused(bundle)


def test_the_signature_is_of_this_manifest_and_of_no_other(bundle, keys, tmp_path):
    trust.add(keys("a") / "release.pub")
    signed(bundle, keys("a"))
    other = shutil.copytree(bundle, tmp_path / "other")
    manifest = other / "manifest.json"
    manifest.write_bytes(manifest.read_bytes() + b" ")
    words = "the signature is not of this manifest: one of them was changed, or is of another rel"
    assert words in refused(other)
    signed(other, keys("a"), NUMBER + 1)
    read_bundle(other)
    shutil.copyfile(bundle / "manifest.sig", other / "manifest.sig")
    assert words in refused(other)
    # The number is signed too, and the key's name.
    text = (bundle / "manifest.sig").read_bytes()
    (bundle / "manifest.sig").write_bytes(text.replace(b"number 41", b"number 42"))
    assert words in refused(bundle)
    second = trust.add(keys("b") / "release.pub")
    first = trust.read_key(keys("a") / "release.pub")
    (bundle / "manifest.sig").write_bytes(text.replace(first.name.encode(), second.name.encode()))
    assert words in refused(bundle)
    (bundle / "manifest.sig").write_bytes(text)
    read_bundle(bundle)


def test_nothing_is_parsed_before_its_signature_was_checked(bundle, keys):
    trust.add(keys("a") / "release.pub")
    signed(bundle, keys("a"))
    (bundle / "manifest.json").write_bytes(b"[" * 100_000)
    assert "the signature is not of this manifest" in refused(bundle)
    (bundle / "manifest.sig").unlink()
    assert "not signed" in refused(bundle)


def test_openssl_agrees(bundle, keys, tmp_path):
    """On the key, on its name, and on what is signed: head and manifest."""
    folder = keys("a")
    lines = (signed(bundle, folder) / "manifest.sig").read_bytes().splitlines(keepends=True)
    (tmp_path / "value").write_bytes(base64.b64decode(lines[3].removeprefix(b"Ed25519 ")))
    message = b"".join(lines[:3]) + (bundle / "manifest.json").read_bytes()
    (tmp_path / "message").write_bytes(message)
    verify = ["openssl", "pkeyutl", "-verify", "-rawin", "-pubin", "-inkey", folder / "release.pub",
              "-sigfile", tmp_path / "value", "-in", tmp_path / "message"]  # fmt: skip
    assert subprocess.run(verify, capture_output=True).returncode == 0
    (tmp_path / "message").write_bytes(message + b"\n")
    assert subprocess.run(verify, capture_output=True).returncode != 0
    show = ["openssl", "pkey", "-in", folder / "release.key", "-pubout", "-outform", "DER"]
    der = subprocess.run(show, capture_output=True, check=True).stdout
    assert lines[:3] == [
        b"anchorvla release 1\n",
        b"key " + sha256(der[-32:]).hexdigest().encode() + b"\n",
        b"number 41\n",
    ]


def test_a_key_of_openssl_signs_and_is_a_release_key(bundle, tmp_path):
    private, public = tmp_path / "own.key", tmp_path / "own.pub"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", private], check=True)
    subprocess.run(["openssl", "pkey", "-in", private, "-pubout", "-out", public], check=True)
    assert trust.add(public).kind == "release"
    sign(SignConfig(bundle=bundle, key=private))
    read_bundle(bundle)


def test_a_development_key_counts_where_there_is_no_other(bundle, keys):
    key = trust.add(keys("desk", development=True) / "release.pub")
    assert str(key) == f"{key.name[:16]} development: for development only"
    read_bundle(signed(bundle, keys("desk")))
    trust.add(keys("a") / "release.pub")
    assert (
        f"signed by the key {key}, which counts for nothing beside a release key; this machine runs"
        in refused(bundle)
    )
    read_bundle(signed(bundle, keys("a")))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: b"", "not a signature of this version"),
        (lambda t: t[:-1], "not a signature of this version"),
        (lambda t: t + b"\n", "not a signature of this version"),
        (lambda t: t * 1000, "not a signature of this version"),
        (lambda t: t.replace(b"release 1", b"release 2"), "not a signature of this version"),
        (lambda t: t.replace(b"number 41", b"number 041"), "not a signature of this version"),
        (lambda t: t.replace(b"number 41", b"number -1"), "not a signature of this version"),
        (lambda t: t.replace(b"number 41", b"number " + b"9" * 19), "not a signature of this"),
        (lambda t: t.replace(b"\n", b"\r\n"), "not a signature of this version"),
        (lambda t: t[:-20] + (b"B" if t[-20:-19] == b"A" else b"A") + t[-19:], "not of this mani"),
    ],
)
def test_a_signature_of_another_form_is_refused(bundle, keys, change, message):
    trust.add(keys("a") / "release.pub")
    path = signed(bundle, keys("a")) / "manifest.sig"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(runtime.BundleError, match=message):
        read_bundle(bundle)


def test_base64_that_means_the_same_is_not_the_same(bundle, keys):
    """The last letter of 64 bytes has four bits that no byte takes."""
    trust.add(keys("a") / "release.pub")
    path = signed(bundle, keys("a")) / "manifest.sig"
    text = path.read_bytes()
    letters = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    other = letters[letters.index(text[-4]) + 1]
    path.write_bytes(text[:-4] + bytes([other]) + text[-3:])
    assert "damaged" in refused(bundle)


@pytest.mark.parametrize("kind", ["link", "folder", "pipe"])
def test_a_signature_is_a_plain_file(bundle, keys, tmp_path, kind):
    trust.add(keys("a") / "release.pub")
    path = signed(bundle, keys("a")) / "manifest.sig"
    path.rename(tmp_path / "elsewhere")
    if kind == "link":
        path.symlink_to(tmp_path / "elsewhere")
    elif kind == "folder":
        path.mkdir()
    else:
        os.mkfifo(path)
    assert f"{path}: not a plain file" in refused(bundle)


def test_a_key_that_cannot_be_read_stops_everything(bundle, keys, store, tmp_path):
    trust.add(keys("a") / "release.pub")
    read_bundle(signed(bundle, keys("a")))
    (store / "note.txt").write_text("hello")
    assert f"{store}/note.txt: not a public key in PEM" in refused(bundle)
    (store / "note.txt").unlink()
    (store / ".hidden").write_text("what a killed process left")
    read_bundle(bundle)
    for path in store.iterdir():
        path.unlink()
    store.rmdir()
    store.write_text("no folder")
    assert f"{store}: cannot be read (Not a directory)" in refused(bundle)


def test_a_folder_of_keys_that_may_not_be_read_stops_everything(bundle, keys, monkeypatch):
    source = keys("a") / "release.pub"
    with as_nobody() as folder:
        monkeypatch.setenv("ANCHORVLA_TRUST", str(folder / "trust"))
        trust.add(source)
        (folder / "trust").chmod(0o700)
        drop_rights()
        with pytest.raises(runtime.BundleError, match="trust: cannot be read .Permission denied"):
            trust.trusted_keys()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a public key in PEM"),
        (b"-----BEGIN PUBLIC KEY-----\nAA==\n-----END PUBLIC KEY-----\n", "not a public key in P"),
        (rsa.generate_private_key(65537, 2048).public_key().public_bytes(
            Encoding.PEM, PublicFormat.SubjectPublicKeyInfo), "not a key of Ed25519"),
        (b"x" * 10_000 + ed25519.Ed25519PrivateKey.generate().public_key().public_bytes(
            Encoding.PEM, PublicFormat.SubjectPublicKeyInfo), "not a public key in PEM"),
    ],
)  # fmt: skip
def test_what_is_no_key_is_not_trusted(tmp_path, store, data, message):
    path = tmp_path / "x.pub"
    path.write_bytes(data)
    with pytest.raises(runtime.BundleError, match=message):
        trust.add(path)
    assert not store.exists()


def test_a_private_key_does_not_get_onto_a_board(keys, store):
    with pytest.raises(runtime.BundleError, match="a private key, which stays where releases"):
        trust.add(keys("a") / "release.key")
    assert not store.exists()


def test_keys_are_for_their_owner_and_are_never_replaced(keys, tmp_path, capsys):
    folder = keys("a")
    secret = (folder / "release.key").read_bytes()
    assert stat.S_IMODE((folder / "release.key").stat().st_mode) == 0o600
    assert secret.decode().splitlines()[1] not in capsys.readouterr().out
    with pytest.raises(OutputError, match=r"release\.key: there is one already"):
        make_keys(KeysConfig(out=folder))
    (folder / "release.key").rename(folder / "elsewhere")
    with pytest.raises(OutputError, match=r"release\.pub: there is one already"):
        make_keys(KeysConfig(out=folder))
    assert (folder / "elsewhere").read_bytes() == secret
    assert sorted(p.name for p in folder.iterdir()) == ["elsewhere", "release.pub"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, r"cannot be read \(No such file or directory\); make keys with"),
        (lambda path: path.write_bytes(b"x"), "not a private key in PEM without a passphrase"),
        (lambda path: subprocess.run(
            ["openssl", "genpkey", "-algorithm", "rsa", "-quiet", "-out", path], check=True),
         "not a key of Ed25519"),
        (lambda path: subprocess.run(
            ["openssl", "genpkey", "-algorithm", "ed25519", "-aes256", "-pass", "pass:secret",
             "-out", path], check=True), "without a passphrase"),
    ],
)  # fmt: skip
def test_what_cannot_sign_says_so(bundle, tmp_path, make, message):
    path = tmp_path / "k.key"
    make(path)
    with pytest.raises(ExportError, match=message):
        sign(SignConfig(bundle=bundle, key=path))
    assert not (bundle / "manifest.sig").exists()


def test_a_damaged_bundle_is_not_signed(bundle, keys):
    (bundle / "stray").write_text("")
    with pytest.raises(runtime.BundleError, match="stray: not in the manifest"):
        signed(bundle, keys("a"))
    assert not (bundle / "manifest.sig").exists()


def test_a_release_is_numbered_by_the_time_where_nobody_says_otherwise(bundle, keys, monkeypatch):
    monkeypatch.setattr("time.gmtime", lambda: (2026, 11, 28, 17, 55, 0, 5, 332, 0))
    sign(SignConfig(bundle=bundle, key=keys("a") / "release.key"))
    assert read_signature(bundle).number == 20261128175500
    for number in (0, -1, MOST_NUMBER + 1):
        with pytest.raises(ValueError, match="number must be from 1 to 999999999999999999, got"):
            SignConfig(bundle=bundle, number=number)
    for number in (1, MOST_NUMBER):
        assert read_signature(signed(bundle, keys("a"), number)).number == number


def test_trust_on_the_command_line(keys, store, capsys):
    assert main(["trust", "list"]) == 0
    assert capsys.readouterr().out == (
        f"no key in {store}: this machine runs every bundle, signed or not\n"
    )
    names = {}
    for pair in ("a", "b"):
        path = str(keys(pair) / "release.pub")
        capsys.readouterr()
        assert main(["trust", "add", path]) == 0
        names[pair] = trust.read_key(keys(pair) / "release.pub").name[:16]
        assert capsys.readouterr().out.startswith(f"trusted: {names[pair]} release\n")
    assert main(["trust", "list"]) == 0
    lines = [f"{name} release: {store}/{name}.pub\n" for name in sorted(names.values())]
    assert capsys.readouterr().out == "".join(lines)
    assert main(["trust", "remove", names["a"]]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"trusted no more: {names['a']} release",
        f"{names['b']} release: {store}/{names['b']}.pub",
    ]
    for name in (names["a"], ""):
        assert main(["trust", "remove", name]) == 2
        err = capsys.readouterr().err
        assert f"0 keys have a name that begins with {name!r}; trusted are {names['b']}" in err
    assert main(["trust", "add", "nowhere.pub"]) == 3
    assert "nowhere.pub: cannot be read (No such file or directory)" in capsys.readouterr().err


def test_a_name_that_begins_two_keys_removes_neither(store, tmp_path):
    names = []
    while len({name[0] for name in names}) == len(names):  # 17 at most
        public = ed25519.Ed25519PrivateKey.generate().public_key()
        (tmp_path / "x.pub").write_bytes(trust.key_file(public, "release"))
        names.append(trust.add(tmp_path / "x.pub").name)
    with pytest.raises(ValueError, match=f"2 keys have a name that begins with '{names[-1][0]}'"):
        trust.remove(names[-1][0])
    assert trust.trusted_keys().keys() == set(names)
    assert trust.remove(names[-1]).name == names[-1]


def test_a_release_with_anything_wrong_is_refused(demo_bundle, tmp_path, monkeypatch):
    release = fuzz_release.prepare(demo_bundle, tmp_path, seed=1)
    found = fuzz_release.refuse_all(release, fuzz_release.Spy(), 10 * len(fuzz_release.MUTATIONS))
    assert found.wrong == []
    assert set(found.by_kind.values()) == {10}
    assert found.most_bytes < fuzz_release.MOST_BYTES


def test_the_fuzzer_sees_what_is_accepted_and_what_is_opened_too_soon(
    demo_bundle, tmp_path, monkeypatch
):
    release = fuzz_release.prepare(demo_bundle, tmp_path, seed=1)
    spy, num = fuzz_release.Spy(), len(fuzz_release.MUTATIONS)
    read = runtime.bundle.read_bundle
    monkeypatch.setattr(fuzz_release, "read_bundle", lambda folder: None)
    assert len(fuzz_release.refuse_all(release, spy, num).wrong) == num

    def hasty(folder):
        (folder / "engines" / "denoise.onnx").read_bytes()
        read(folder)

    monkeypatch.setattr(fuzz_release, "read_bundle", hasty)
    wrong = fuzz_release.refuse_all(release, spy, num).wrong
    assert any("number: " in words and "denoise.onnx was opened" in words for words in wrong)
