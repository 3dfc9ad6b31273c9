//! Bases and parents that are damaged, and blocks that are marked.

use super::*;

#[tokio::test]
async fn a_damaged_or_missing_segment_of_the_newest_leads_to_an_older_base() {
    let place = RepositoryFixture::new();
    copy(&place, 1, None, &[(0, 1), (5, 1)]).await;
    let old = place.objects("segments");
    copy(&place, 2, None, &[(0, 2), (5, 2)]).await;
    let mut new = place.objects("segments");
    new.retain(|path| !old.contains(path));
    let whole = std::fs::read(&new[0]).unwrap();
    for is_missing in [false, true] {
        std::fs::write(&new[0], &whole).unwrap();
        match is_missing {
            true => std::fs::remove_file(&new[0]).unwrap(),
            false => flip(&new[0]),
        }
        let next = source(3);
        let facts = place.facts(&next, &Base::Auto, None).await;
        assert_eq!(ids(&facts), ["snap-01"]);
        let damaged = Replica {
            source: "snap-02".parse().unwrap(),
            id: "snap-02".parse().unwrap(),
            volume_bytes: None,
            encrypted: None,
        };
        let target = place.target(&next).await;
        let refused = open(&target, &next, Some(&damaged), &[(1, 9)], None).await;
        assert_eq!(refused.unwrap_err().remedy(), Some(&Remedy::CopyAll));
    }
    let base = place.facts(&source(3), &Base::Auto, None).await.replicas;
    copy(&place, 3, base.first(), &[(1, 3)]).await;
    assert_eq!(contents(&place, 3).await[..6], [1, 3, 0, 0, 0, 1]);
    // A full copy relies on the newest sound one.
    place
        .objects("snapshots")
        .iter()
        .filter(|path| !path.to_str().unwrap().ends_with("snap-01"))
        .for_each(|path| flip(path));
    let packs = place.objects("packs").len();
    copy(&place, 4, None, &[(0, 1), (5, 1)]).await;
    assert_eq!(place.objects("packs").len(), packs);
    assert_eq!(contents(&place, 4).await[..6], [1, 0, 0, 0, 0, 1]);
    // A full copy needs no parent.
    place
        .objects("snapshots")
        .iter()
        .for_each(|path| flip(path));
    copy(&place, 5, None, &[(0, 1), (5, 1)]).await;
    assert_eq!(contents(&place, 5).await[..6], [1, 0, 0, 0, 0, 1]);
}

#[tokio::test]
async fn a_block_left_zero_for_damage_is_written_by_the_next_delta() {
    let place = RepositoryFixture::new();
    let one = source(1);
    let target = place.target(&one).await;
    let blocks = [(0, 1), (4, 1), (5, 1)];
    let opened = open(&target, &one, None, &blocks, None).await.unwrap();
    publish(&opened, &blocks, &[4]).await.unwrap();
    assert_eq!(contents(&place, 1).await[..6], [1, 0, 0, 0, LOST, 1]);
    let held = reader(&place, 1).await;
    let held = crate::source::held(&*held).await.unwrap();
    let held: Vec<_> = held
        .runs()
        .map(|run| (run.start().0, run.end().0))
        .collect();
    assert_eq!(held, [(0, 1), (4, 6)]);
    let facts = place.facts(&one, &Base::Auto, None).await;
    assert!(facts.holds.is_some() && facts.held_damaged == 1);
    let base = place.facts(&source(2), &Base::Auto, None).await.replicas;
    let mut plan = Delta::new(Some(one.geometry), one.geometry);
    plan.insert(BlockIndex(0), Change::Write);
    let plan = target.adapt(Arc::new(plan), base.first()).await.unwrap();
    let blocks: Vec<_> = plan
        .write()
        .runs_in(BlockIndex(0), BlockIndex(BLOCKS))
        .collect();
    assert_eq!(
        blocks,
        [Extent::of(BlockIndex(0)), Extent::of(BlockIndex(4))]
    );
    // A delta whose block is damaged has no bytes of the base there.
    let two = source(2);
    let opened = open(&target, &two, base.first(), &[(0, 2), (5, 2)], None);
    publish(&opened.await.unwrap(), &[(0, 2), (5, 2)], &[5])
        .await
        .unwrap();
    assert_eq!(contents(&place, 2).await[..6], [2, 0, 0, 0, 0, LOST]);
}

#[tokio::test]
async fn a_block_damaged_in_base_or_head_is_part_of_the_delta() {
    let place = RepositoryFixture::new();
    // The second has lost the blocks 4 and 6, the third 6; the first never had 6.
    let all = [(0, 1), (4, 1), (5, 1), (7, 1)];
    copy(&place, 1, None, &all).await;
    for (number, blocks, damaged) in [(2, &all[..], &[4, 6][..]), (3, &all[1..], &[6])] {
        let source = source(number);
        let target = place.target(&source).await;
        let blocks: Vec<_> = blocks.iter().copied().chain([(6, 1)]).collect();
        let opened = open(&target, &source, None, &blocks, None).await.unwrap();
        publish(&opened, &blocks, damaged).await.unwrap();
    }
    let catalog = place.catalog().await;
    let delta = async |base: u32, head: u32| {
        let id = |number| source(number).id().unwrap();
        let (base, head) = (id(base), id(head));
        let (delta, _) = crate::source::Catalog::delta(&catalog, &base, &head)
            .await
            .unwrap();
        let changes = (0..BLOCKS).filter_map(|n| Some((n, delta.change(BlockIndex(n))?)));
        changes.collect::<Vec<_>>()
    };
    use Change::{Write, Zero};
    // A block that the first has and the second has lost is not zeroed; a lost block may have held any bytes.
    assert_eq!(delta(1, 2).await, [(4, Write), (6, Write)]);
    assert_eq!(delta(2, 1).await, [(4, Write), (6, Zero)]);
    assert_eq!(delta(2, 3).await, [(0, Zero), (4, Write), (6, Write)]);
    assert_eq!(delta(1, 1).await, []);
    assert_eq!(delta(2, 2).await, [(4, Write), (6, Write)]);
}
