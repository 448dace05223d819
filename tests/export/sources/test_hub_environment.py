"""Whatever the environment does to the way to the hub works, or is a sentence that names the variable."""

import os
import socket
import stat
import sys
from pathlib import Path

import pytest
from fakes.hub_server import RELEASE, WITH_GGUF, FakeHub, Fault, bring, found, lent_hub, publish_release
from huggingface_hub import close_session, constants
from huggingface_hub.errors import HTTPError

from ltx_runtime.errors import LtxError
from ltx_runtime.hub.environment import influences, prepare, proxy_of

hub = pytest.fixture(lent_hub)
PROXIES = tuple(name for kind in ("http", "https", "all", "no") for name in (f"{kind}_proxy", f"{kind}_proxy".upper()))
CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")


@pytest.fixture
def environment(monkeypatch, tmp_path):
    """Sets variables after all others that matter were removed."""
    for name in (*PROXIES, *CERTIFICATES, "HF_ENDPOINT", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    close_session()

    def environment(**variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        close_session()

    yield environment
    close_session()


def refusal(environment, **variables):
    environment(**variables)
    with pytest.raises(LtxError) as refused:
        prepare()
    sentence = str(refused.value)
    assert "\n" not in sentence and " - " in sentence
    return sentence


ENDPOINTS = ("", "hub", "ftp://hub", "http://", "http://[::1", "http://hub:port", "http://a b", "//hub", "http://h\n")


@pytest.mark.parametrize("value", ENDPOINTS)
def test_an_endpoint_that_is_no_address_is_refused(environment, value):
    assert refusal(environment, HF_ENDPOINT=value).startswith(f"HF_ENDPOINT is {value!r}, which is not the address")


@pytest.mark.parametrize("value", ["http://hub", "https://hub/", "http://127.0.0.1:8080//", "https://[::1]:443/mirror"])
def test_an_endpoint_that_is_an_address_is_taken(environment, value):
    environment(HF_ENDPOINT=value)
    prepare()


@pytest.mark.parametrize("name", [name for name in PROXIES if name.lower() != "no_proxy"])
@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("socks5://127.0.0.1:1080", "names a SOCKS proxy, which needs socksio - run: "),
        ("socks5h://user:word@127.0.0.1:1080", "names a SOCKS proxy, which needs socksio - run: "),
        ("socks4://127.0.0.1:1080", "cannot be used ("),
        ("ftp://127.0.0.1", "cannot be used ("),
        ("http://127.0.0.1:port", "cannot be used ("),
        ("http://[::1", "cannot be used ("),
    ],
)
def test_a_proxy_that_cannot_be_used_is_told_with_its_variable(environment, monkeypatch, name, value, told):
    monkeypatch.setitem(sys.modules, "socksio", None)
    sentence = refusal(environment, **{name: value})
    assert sentence.startswith(f"{name} {told}")
    assert "word" not in sentence
    assert os.environ[name] == value  # it was left out for a moment only


def test_of_two_that_are_wrong_both_are_named(environment, tmp_path):
    sentence = refusal(environment, HTTPS_PROXY="ftp://x", SSL_CERT_FILE=str(tmp_path / "none.pem"))
    assert "HTTPS_PROXY" in sentence and "SSL_CERT_FILE" in sentence


@pytest.mark.parametrize("value", ["*", "localhost,127.0.0.1", "::1/128,10.0.0.0/8", "[::1", ".example", ","])
def test_exceptions_from_a_proxy_may_be_anything(environment, value):
    environment(NO_PROXY=value, HTTPS_PROXY="http://127.0.0.1:9")
    prepare()


@pytest.mark.parametrize("name", CERTIFICATES)
@pytest.mark.parametrize("content", [None, b"", b"no certificate", "a folder"], ids=str)
def test_certificates_that_cannot_be_read_are_told_or_do_not_matter(environment, tmp_path, name, content):
    path = tmp_path / "certificates.pem"
    if content == "a folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    environment(**{name: str(path)})
    try:
        prepare()
    except LtxError as error:
        assert str(error).startswith(f"{name} is {path}, which cannot be read (")
    else:
        assert name != "SSL_CERT_FILE"  # the HTTP library does not read it, or takes a folder as it is


@pytest.mark.parametrize("kind", ["a folder", "bytes", "not readable", "letters"])
def test_a_token_that_cannot_be_read_or_sent_is_told_with_its_place(environment, tmp_path, kind):
    path = tmp_path / "token"
    if kind == "a folder":
        path.mkdir()
    else:
        path.write_bytes({"bytes": b"\xff\xfe", "letters": "ключ".encode()}.get(kind, b"hf_x"))
    if kind == "not readable":
        path.chmod(0)
        if os.access(path, os.R_OK):
            path.chmod(stat.S_IRUSR)
            pytest.skip("this user may read every file, as root may - run the tests as another user")
    sentence = refusal(environment)
    assert str(path) in sentence
    assert refusal(environment, HF_TOKEN="ключ").startswith("HF_TOKEN has letters that cannot be sent")


def test_what_a_request_goes_through_is_known(environment):
    assert proxy_of("https://hub") == ""
    environment(HTTPS_PROXY="http://p", all_proxy="http://q", NO_PROXY="inside")
    assert (proxy_of("https://hub"), proxy_of("http://hub"), proxy_of("https://inside/a")) == (
        "HTTPS_PROXY",
        "all_proxy",
        "",
    )
    assert {*influences().split(", ")} == {"the network", "HTTPS_PROXY", "all_proxy", "NO_PROXY"}


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "weights"


def sentence_of(folder):
    with pytest.raises(LtxError) as refused:
        bring(folder)
    return str(refused.value)


def test_a_proxy_is_used_and_named_when_it_fails(hub, folder, environment, monkeypatch):
    real = hub.url
    monkeypatch.setattr(constants, "ENDPOINT", "http://hub.example")
    template = "http://hub.example/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    environment(http_proxy=real, no_proxy="localhost")
    bring(folder)
    assert found(folder) == {name: hub.contents[name] for name in WITH_GGUF}
    assert "hub.example" in hub.hosts
    (folder / RELEASE.checkpoint).unlink()
    hub.faults = [Fault(status=407)]
    assert sentence_of(folder).startswith("the proxy in http_proxy wants a name and a password - ")
    hub.close()
    sentence = sentence_of(folder)
    assert "refused; through the proxy in http_proxy)" in sentence
    assert sentence.endswith("- check the network, http_proxy, no_proxy")


def test_a_certificate_that_is_not_trusted_is_told_at_once(hub, folder, monkeypatch):
    def untrusted(*_, **__):
        raise HTTPError("[SSL: CERTIFICATE_VERIFY_FAILED] self-signed certificate in certificate chain")

    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", untrusted)
    assert "has a certificate that is not trusted here ([SSL: CERTIFICATE_VERIFY_FAILED]" in sentence_of(folder)
    assert hub.waits_s == []


def test_a_hub_with_an_address_of_version_6_is_asked(folder, environment, monkeypatch):
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6, at which a hub could be asked")
    hub = FakeHub("::1")
    try:
        publish_release(hub)
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        bring(folder)
        assert found(folder) == {name: hub.contents[name] for name in WITH_GGUF}
    finally:
        hub.close()


def test_a_file_of_the_cache_that_may_not_be_read_is_fetched_instead(hub, folder, monkeypatch):
    from huggingface_hub import hf_hub_download

    hf_hub_download("tests/video", RELEASE.checkpoint)
    real = os.access
    cache = str(Path(constants.HF_HUB_CACHE))
    monkeypatch.setattr(os, "access", lambda path, mode: not str(path).startswith(cache) and real(path, mode))
    bring(folder)
    assert found(folder)[RELEASE.checkpoint] == hub.contents[RELEASE.checkpoint]


def test_an_error_of_another_file_is_not_blamed_on_the_folder(hub, folder, monkeypatch):
    def fails(*_, **__):
        raise PermissionError(13, "Permission denied", "/elsewhere/file")

    monkeypatch.setattr("ltx_runtime.hub.folder.fetch", fails)
    assert (
        sentence_of(folder) == "cannot use /elsewhere/file: permission denied - check its permissions or choose "
        "another place"
    )
