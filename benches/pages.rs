//! One page after another: what the SDK's own paginator needs for ListChangedBlocks, the way to list a delta that its
//! documents show. `pages BASE HEAD`, endpoint and credentials by the environment; prints seconds, pages and blocks as JSON.

use std::time::Instant;

use aws_config::BehaviorVersion;

type Failure = Box<dyn std::error::Error + Send + Sync>;

fn main() -> Result<(), Failure> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [base, head] = &args[..] else {
        // `cargo test` and `cargo bench` run it without arguments.
        return Ok(());
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let start = Instant::now();
    let (pages, blocks) = runtime.block_on(async {
        let config = aws_config::load_defaults(BehaviorVersion::latest()).await;
        let call = aws_sdk_ebs::Client::new(&config)
            .list_changed_blocks()
            .first_snapshot_id(base)
            .second_snapshot_id(head)
            .max_results(10_000);
        let mut paginator = call.into_paginator().send();
        let (mut pages, mut blocks) = (0, 0);
        while let Some(page) = paginator.try_next().await? {
            pages += 1;
            blocks += page.changed_blocks().len();
        }
        Ok::<_, Failure>((pages, blocks))
    })?;
    let seconds = start.elapsed().as_secs_f64();
    println!("{{\"seconds\": {seconds:.3}, \"pages\": {pages}, \"blocks\": {blocks}}}");
    Ok(())
}
