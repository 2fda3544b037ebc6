use super::*;

fn ring() -> Keyring {
    let mut ring = Keyring::new(Region::new("eu-west").unwrap(), [1; 32]);
    assert_eq!(ring.add_data_key("acme", [10; 32], [1; 12]), Ok(1));
    assert_eq!(ring.add_data_key("other", [20; 32], [2; 12]), Ok(1));
    assert_eq!(ring.rotate_region([2; 32]), Ok(2));
    assert_eq!(ring.add_data_key("acme", [11; 32], [3; 12]), Ok(2));
    ring
}

#[test]
fn keys_survive_printing_and_rotation() {
    let text = ring().print();
    let again = Keyring::parse(&text).unwrap();
    assert_eq!(again.print(), text);
    assert_eq!(again.data_key("acme", 1).unwrap().bytes(), &[10; 32]);
    assert_eq!(again.data_key("acme", 2).unwrap().bytes(), &[11; 32]);
    assert_eq!(again.data_keys("acme").unwrap().iter().map(|key| key.id).collect::<Vec<_>>(), [1, 2]);
    assert!(!text.contains(&"0a".repeat(32)), "a data key in clear");
    let mut again = again;
    again.rewrap("acme", 1, [9; 12]).unwrap();
    assert_eq!(again.data_key("acme", 1).unwrap().bytes(), &[10; 32]);
    assert!(again.print().contains("dek acme 1 2 "), "{}", again.print());
}

#[test]
fn what_is_listed_tells_no_key() {
    let mut ring = ring();
    ring.destroy("acme", 1).unwrap();
    assert_eq!(ring.region_key_ids().collect::<Vec<_>>(), [1, 2]);
    let listed: Vec<_> = ring.entries().map(|it| (it.tenant.to_string(), it.id, it.region_key)).collect();
    let expected = [("acme", 1, None), ("other", 1, Some(1)), ("acme", 2, Some(2))];
    assert_eq!(listed, expected.map(|(tenant, id, kek)| (tenant.to_string(), id, kek)));
    let print = |tenant: &str, id, byte| DataKey::new(id, [byte; 32]).fingerprint(tenant);
    assert_eq!(print("a", 1, 1), print("a", 1, 1));
    let others = [print("b", 1, 1), print("a", 2, 1), print("a", 1, 2)];
    assert!(others.iter().all(|it| *it != print("a", 1, 1)), "{others:?}");
}

#[test]
fn a_destroyed_key_is_gone_and_its_number_stays_taken() {
    let mut ring = ring();
    ring.destroy("acme", 2).unwrap();
    let again = Keyring::parse(&ring.print()).unwrap();
    assert_eq!(again.data_key("acme", 2).unwrap_err(), KeyError::Destroyed);
    assert_eq!(again.data_keys("acme").unwrap().len(), 1);
    let mut again = again;
    assert_eq!(again.add_data_key("acme", [12; 32], [4; 12]), Ok(3));
    assert_eq!(again.data_key("nobody", 1).unwrap_err(), KeyError::Unknown);
    assert_eq!(again.add_data_key("No One", [0; 32], [0; 12]).unwrap_err(), KeyError::BadTenant);
}

/// A line moved to another tenant, number or region does not open, even with a fitting checksum.
#[test]
fn a_moved_key_does_not_open() {
    let text = ring().print();
    for (from, to, tenant, id) in [
        ("dek acme 1 1", "dek evil 1 1", "evil", 1),
        ("dek acme 1 1", "dek acme 7 1", "acme", 7),
        ("dek acme 2 2", "dek acme 2 1", "acme", 2),
        ("region eu-west", "region us-east", "acme", 1),
    ] {
        let body = text[..text.len() - 13].replace(from, to);
        let moved = format!("{body}crc {:08x}\n", crc32c::crc32c(body.as_bytes()));
        let ring = Keyring::parse(&moved).unwrap();
        assert_eq!(ring.data_key(tenant, id).unwrap_err(), KeyError::Refused, "{from} -> {to}");
    }
}

#[test]
fn other_texts_are_refused_by_line() {
    let text = ring().print();
    let body = &text[..text.len() - 13];
    let check = |body: String| {
        let crc = crc32c::crc32c(body.as_bytes());
        Keyring::parse(&format!("{body}crc {crc:08x}\n")).err()
    };
    assert_eq!(check(body.to_string()), None);
    assert_eq!(check(body.replace("felix-keyring 1\n", "felix-keyring 2\n")), Some(KeyringError::FirstLine));
    assert_eq!(check(body.replace("region eu-west\n", "")), Some(KeyringError::NoRegion));
    assert_eq!(check(format!("{body}nonsense\n")), Some(KeyringError::Line(8)));
    assert_eq!(check(format!("{body}destroyed acme 1\n")), Some(KeyringError::Duplicate(8)));
    assert_eq!(check(format!("{body}destroyed acme 01\n")), Some(KeyringError::Line(8)));
    assert_eq!(check(format!("{body}kek 1 {}\n", "00".repeat(32))), Some(KeyringError::Duplicate(8)));
    assert_eq!(
        check(body.replace("dek other 1 1", "dek other 1 9")),
        Some(KeyringError::NoRegionKey { line: 6, kek: 9 })
    );
    for end in 0..text.len() {
        assert!(Keyring::parse(&text[..end]).is_err(), "cut at {end}");
    }
    for at in 0..text.len() {
        let mut bytes = text.clone().into_bytes();
        bytes[at] ^= 1;
        assert!(Keyring::parse(std::str::from_utf8(&bytes).unwrap()).is_err(), "byte {at}");
    }
}

#[test]
fn debug_shows_no_key() {
    let ring = ring();
    let text = format!("{ring:?} {:?}", ring.data_key("acme", 1).unwrap());
    assert_eq!(text, "Keyring(eu-west, 3 keys) DataKey(1)");
}
