use super::*;
use felix_protocol::metadata::{StreamSpec, TenantLimits};

fn stream(text: &str) -> StreamName {
    StreamName::parse(text).unwrap()
}

fn role(principal: &str, verbs: &[Verb], pattern: &str) -> Role {
    Role {
        principal: Principal::named(principal).unwrap(),
        verbs: Verbs::of(verbs),
        pattern: StreamPattern::parse(pattern).unwrap(),
    }
}

#[test]
fn without_roles_only_the_administrator_may_do_anything() {
    let roles = Roles::default();
    let name = stream("acme/md/quotes");
    let namespace = Target::Namespace { tenant: "acme", namespace: "md" };
    for target in [Target::Cluster, Target::Tenant("acme"), namespace, Target::Stream(&name)] {
        for verb in Verb::ALL {
            assert!(roles.allowed(&Principal::admin(), verb, target));
            assert!(!roles.allowed(&Principal::named("ann").unwrap(), verb, target), "{verb:?} {target:?}");
            assert!(!roles.allowed(&Principal::system(), verb, target), "{verb:?} {target:?}");
        }
    }
}

#[test]
fn a_role_grants_its_verbs_on_its_pattern_to_its_principal_and_no_more() {
    let roles = Roles::new(vec![role("ann", &[Verb::Publish, Verb::CacheRead], "acme/*/quotes")]);
    let ann = Principal::named("ann").unwrap();
    let (inside, outside) = (stream("acme/md/quotes"), stream("acme/md/trades"));
    for verb in Verb::ALL {
        let granted = matches!(verb, Verb::Publish | Verb::CacheRead);
        assert_eq!(roles.allowed(&ann, verb, Target::Stream(&inside)), granted, "{verb:?}");
        assert!(!roles.allowed(&ann, verb, Target::Stream(&outside)));
        assert!(!roles.allowed(&ann, verb, Target::Stream(&stream("other/md/quotes"))));
        assert!(!roles.allowed(&Principal::named("bob").unwrap(), verb, Target::Stream(&inside)));
        assert!(!roles.allowed(&ann, verb, Target::Tenant("acme")));
    }
}

#[test]
fn a_wider_target_needs_a_wider_pattern() {
    let name = stream("t/n/s");
    let namespace = Target::Namespace { tenant: "t", namespace: "n" };
    let targets = [Target::Cluster, Target::Tenant("t"), namespace, Target::Stream(&name)];
    for (pattern, expected) in [
        ("*/*/*", [true, true, true, true]),
        ("t/*/*", [false, true, true, true]),
        ("t/n/*", [false, false, true, true]),
        ("t/n/s", [false, false, false, true]),
        ("*/n/s", [false, false, false, true]),
        ("*/*/x", [false, false, false, false]),
        ("u/*/*", [false, false, false, false]),
    ] {
        let pattern = StreamPattern::parse(pattern).unwrap();
        assert_eq!(targets.map(|target| pattern.covers(target)), expected, "{pattern:?}");
    }
}

#[test]
fn no_name_spells_the_administrator() {
    for (name, error) in [
        ("admin", PrincipalError::Reserved),
        ("system", PrincipalError::Reserved),
        ("", PrincipalError::Empty),
        ("a\nb", PrincipalError::ControlCharacter { at: 1 }),
        (&"x".repeat(256), PrincipalError::TooLong { bytes: 256 }),
    ] {
        assert_eq!(Principal::named(name), Err(error));
    }
    for principal in [Principal::admin(), Principal::system(), Principal::named("Admin").unwrap()] {
        assert_eq!(Principal::from_log(principal.as_str()), Ok(principal));
    }
}

#[test]
fn patterns_are_checked() {
    for (text, error) in [
        ("a/b", StreamPatternError::WrongParts { found: 2 }),
        ("a/b/c/d", StreamPatternError::WrongParts { found: 4 }),
        ("*/*", StreamPatternError::WrongParts { found: 2 }),
        ("a*/b/c", StreamPatternError::BadPart { index: 0, error: NameError::BadCharacter { at: 1 } }),
        ("a//c", StreamPatternError::BadPart { index: 1, error: NameError::Empty }),
        ("a/b/**", StreamPatternError::BadPart { index: 2, error: NameError::BadCharacter { at: 0 } }),
    ] {
        assert_eq!(StreamPattern::parse(text), Err(error), "{text}");
    }
    for verb in Verb::ALL {
        assert_eq!(Verb::from_name(verb.name()), Some(verb));
    }
    assert_eq!(Verb::from_name("everything"), None);
}

#[test]
fn making_a_tenant_by_the_way_needs_the_whole_cluster() {
    let create =
        |create_parents| Command::CreateStream { name: stream("t/n/s"), spec: StreamSpec::default(), create_parents };
    assert_eq!(Target::of_command(&create(true)), Target::Cluster);
    assert_eq!(Target::of_command(&create(false)), Target::Namespace { tenant: "t", namespace: "n" });
    let tenant = Command::CreateTenant { tenant: "t".into(), limits: TenantLimits::default() };
    assert_eq!(Target::of_command(&tenant), Target::Cluster);
    let list = Command::ListStreams { tenant: None, namespace: Some("n".into()), after: None };
    assert_eq!(Target::of_command(&list), Target::Cluster);
}
