"""The tenants file's value: who a key belongs to and what is refused."""

from __future__ import annotations

import pytest
from r1_cluster.routing.tenants import Tenants, TenantsError, hash_key

FILE = f"""
anonymous: guests
tenants:
  - name: acme
    keys: [{hash_key("acme-key")}, {hash_key("acme-key-2")}]
    weight: 3.0
    quota: {{tokens_per_minute: 100000, max_running: 64, max_queued: 128}}
    budget: {{default: 4096, floor: 512, ceiling: 16384}}
  - name: guests
"""


def test_a_key_belongs_to_its_tenant_and_is_written_as_its_hash() -> None:
    tenants = Tenants.from_yaml(FILE)
    acme = tenants.of_key("acme-key")
    assert acme is not None
    assert acme == tenants.of_key("acme-key-2")
    assert (acme.name, acme.weight, acme.quota.max_running, acme.budget.ceiling) == ("acme", 3.0, 64, 16384)
    assert "acme-key" not in repr(tenants)


def test_unknown_keys_belong_to_nobody_and_none_to_the_anonymous() -> None:
    tenants = Tenants.from_yaml(FILE)
    assert tenants.of_key("wrong") is None
    for nothing in (None, ""):
        guest = tenants.of_key(nothing)
        assert guest is not None
        assert guest.name == "guests"
    strict = Tenants.from_yaml(FILE.replace("anonymous: guests", ""))
    assert strict.of_key(None) is None


def test_without_a_file_everyone_is_default_whatever_the_key() -> None:
    tenants = Tenants.single()
    for key in (None, "none", "anything"):
        tenant = tenants.of_key(key)
        assert tenant is not None
        assert tenant.name == "default"
        assert tenant.cache_salt == ""


def test_tenants_have_salts_of_their_own() -> None:
    salts = [tenant.cache_salt for tenant in Tenants.from_yaml(FILE).tenants]
    assert len(set(salts)) == len(salts)
    assert all(salts)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (("weight: 3.0", "weight: 0"), "tenants.0.weight"),
        (("weight: 3.0", "wait: 3"), "tenants.0.wait: Extra inputs"),
        (("name: guests", "name: acme"), "names must differ, twice there: acme"),
        ((hash_key("acme-key-2"), hash_key("acme-key")), "keys must differ"),
        ((hash_key("acme-key"), "acme-key"), "tenants.0.keys.0"),
        (("anonymous: guests", "anonymous: nobody"), "anonymous is 'nobody', which is none of acme, guests"),
        (("floor: 512", "floor: 20000"), "floor 20000 is above ceiling 16384"),
        (("default: 4096", "default: 20000"), "default 20000 is above ceiling 16384"),
        (("max_running: 64", "max_running: 0"), "tenants.0.quota.max_running"),
        (("tenants:", "tenants: ["), "not YAML"),
    ],
)
def test_a_faulty_file_is_refused_by_name_without_its_keys(change: tuple[str, str], named: str) -> None:
    with pytest.raises(TenantsError) as refused:
        Tenants.from_yaml(FILE.replace(*change), source="tenants.yaml")
    text = str(refused.value)
    assert text.startswith("tenants.yaml: ")
    assert named in text
    assert "acme-key" not in text
    assert hash_key("acme-key") not in text
    assert "\n" not in text


@pytest.mark.parametrize("text", ["", "- a", "tenants: []", "{}"])
def test_a_file_names_at_least_one_tenant(text: str) -> None:
    with pytest.raises(TenantsError):
        Tenants.from_yaml(text)
