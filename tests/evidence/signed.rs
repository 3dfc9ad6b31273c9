//! Signatures by ssh-keygen, which also checks them.

use super::*;

/// A key without a passphrase.
fn key(case: &Case, name: &str) -> PathBuf {
    let path = case.at(name);
    run(Command::new("ssh-keygen").args([
        "-q",
        "-t",
        "ed25519",
        "-N",
        "",
        "-C",
        name,
        "-f",
        text(&path),
    ]));
    path
}

/// A file of allowed signers with one key.
fn allow(case: &Case, name: &str, signer: &str, key: &Path) -> PathBuf {
    let public = std::fs::read_to_string(key.with_extension("pub")).unwrap();
    let words: Vec<&str> = public.split_whitespace().take(2).collect();
    let path = case.at(name);
    std::fs::write(&path, format!("{signer} {}\n", words.join(" "))).unwrap();
    path
}

#[test]
fn a_signature_is_checked_by_ssh_keygen_alone_and_another_key_or_statement_is_refused() {
    let case = Case::of_image();
    let (mine, other) = (key(&case, "mine"), key(&case, "other"));
    let folder = case.collect("case", &["--key", text(&mine)]);
    let allowed = allow(&case, "allowed", "ann@example.com", &mine);
    let wrong = allow(&case, "wrong", "ann@example.com", &other);
    let said = sh(&format!(
        "ssh-keygen -Y verify -n ebsfs-evidence -I ann@example.com -f {} -s {1}/evidence.json.sig < {1}/evidence.json",
        allowed.display(),
        folder.display()
    ));
    assert!(
        said.starts_with("Good \"ebsfs-evidence\" signature for ann@example.com"),
        "{said}"
    );

    let with = |signers: &Path, more: &[&str]| {
        let mut args = vec![text(&folder), "--allowed-signers", text(signers)];
        args.extend(more);
        verify(&args)
    };
    let (code, said, errors) = with(&allowed, &[]);
    assert_eq!(code, 0, "{said}{errors}");
    assert!(
        said.contains("signature  by ann@example.com, key SHA256:"),
        "{said}"
    );
    assert_eq!(with(&allowed, &["--signer", "ann@example.com"]).0, 0);
    let (code, said, _) = verify(&[text(&folder)]);
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("not trusted"), "{said}");
    let (code, said, _) = verify(&[text(&folder), "--json"]);
    let report: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(
        (code, &report["signature"]["state"]),
        (0, &"not_trusted".into())
    );

    let patterns = allow(&case, "patterns", "*@example.com", &mine);
    let later = case.at("later");
    let text_of = std::fs::read_to_string(&allowed).unwrap();
    std::fs::write(
        &later,
        text_of.replace(" ssh-", " namespaces=\"file\" ssh-"),
    )
    .unwrap();
    for (signers, more, words) in [
        (&wrong, &[][..], "do not have its key"),
        (&wrong, &["--signer", "ann@example.com"], "not signed by"),
        (&allowed, &["--signer", "bob@example.com"], "not signed by"),
        (&patterns, &[], "only patterns"),
        (&later, &[], "not signed by"),
    ] {
        let (code, said, errors) = with(signers, more);
        assert_eq!(code, 8, "{said}{errors}");
        assert!(errors.contains(words), "{words}: {errors}");
        assert_eq!(errors.lines().count(), 1, "{errors}");
    }
    assert_eq!(with(&patterns, &["--signer", "bob@example.com"]).0, 0);
    assert_eq!(with(&case.at("none"), &[]).0, 3);

    // The statement is changed; the signature is of another one; it is missing, a text, or too long.
    let second = case.collect("second", &["--key", text(&mine)]);
    let unsigned = case.collect("unsigned", &[]);
    let changed = case.copy(&folder, "changed");
    let signature = changed.join("evidence.json.sig");
    run(Command::new("sed").args([
        "-i",
        "s/\"host\": \"/\"host\": \"x/",
        text(&changed.join("evidence.json")),
    ]));
    let refused = |words: &str| {
        let (code, said, errors) = verify(&[text(&changed)]);
        assert_eq!(code, 8, "{said}{errors}");
        assert!(errors.contains(words), "{words}: {errors}");
    };
    refused("its signature is wrong");
    std::fs::copy(folder.join("evidence.json"), changed.join("evidence.json")).unwrap();
    assert_eq!(verify(&[text(&changed)]).0, 0);
    std::fs::remove_file(&signature).unwrap();
    refused("there is no signature");
    std::fs::copy(second.join("evidence.json.sig"), &signature).unwrap();
    refused("its signature is wrong");
    std::fs::remove_file(&signature).unwrap();
    std::fs::write(&signature, "x").unwrap();
    refused("its signature is wrong");
    std::fs::write(&signature, vec![b'x'; 70_000]).unwrap();
    refused("larger than");
    std::fs::remove_file(&signature).unwrap();
    std::os::unix::fs::symlink(folder.join("evidence.json.sig"), &signature).unwrap();
    refused("no regular file");
    let (code, _, errors) = verify(&[text(&unsigned), "--allowed-signers", text(&allowed)]);
    assert_eq!(code, 8, "{errors}");
    assert!(errors.contains("it is not signed"), "{errors}");
}

#[test]
fn an_agent_signs_and_a_key_that_cannot_sign_leaves_evidence_to_be_signed_by_hand() {
    let case = Case::of_image();
    let mine = key(&case, "mine");
    let public = mine.with_extension("pub");
    let socket = case.at("agent");
    let agent = run(Command::new("ssh-agent").args(["-s", "-a", text(&socket)]));
    let id = agent.split("SSH_AGENT_PID=").nth(1).unwrap();
    let id = id.split(';').next().unwrap().to_owned();
    let add = run(Command::new("ssh-add")
        .args(["-q", text(&mine)])
        .env("SSH_AUTH_SOCK", &socket));
    assert_eq!(add, "");
    let alone = case.at("alone.pub");
    std::fs::rename(&public, &alone).unwrap();
    let folder = case.at("case");
    run(case
        .command(&folder, &["--key", text(&alone)])
        .env("SSH_AUTH_SOCK", &socket));
    run(Command::new("kill").arg(&id));
    let (code, said, errors) = verify(&[text(&folder)]);
    assert_eq!(code, 0, "{said}{errors}");
    assert!(said.contains("by key SHA256:"), "{said}");

    // No agent: all is there but the signature, which ssh-keygen makes later.
    let folder = case.at("later");
    let mut command = case.command(&folder, &["--key", text(&alone)]);
    let (code, errors) = ends(command.env_remove("SSH_AUTH_SOCK"));
    assert_eq!(code, 1, "{errors}");
    assert!(errors.contains("cannot sign with"), "{errors}");
    let by_hand = errors.split("ssh-keygen -Y sign").nth(1).unwrap();
    assert!(by_hand.contains(text(&folder)), "{errors}");
    let (code, _, errors) = verify(&[text(&folder)]);
    assert_eq!(code, 8, "{errors}");
    assert!(errors.contains("there is no signature"), "{errors}");
    run(Command::new("ssh-keygen")
        .args(["-Y", "sign", "-n", "ebsfs-evidence", "-f", text(&mine)])
        .arg(folder.join("evidence.json")));
    assert_eq!(verify(&[text(&folder)]).0, 0);

    // What is no key is refused before anything is read.
    let none = case.at("none");
    let (code, errors) = ends(&mut case.command(&none, &["--key", "/nonexistent"]));
    assert_eq!(code, 3, "{errors}");
    assert!(!none.exists());
}
