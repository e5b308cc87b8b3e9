//! Who is compared: the service itself, the peers, and the bare hops that no service could do without.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Result, ensure};

use crate::bed::{Bed, Names, ReceivedEvent};
use crate::peer::{self, PeerSettings, is_ready, why_absent};
use crate::process::Process;

/// A contender, running.
pub(crate) struct Contender {
    pub name: String,
    pub process: Process,
    pub names: Names,
    pub reported: ReceivedEvent,
}

/// How the service is run; all else is its default.
#[derive(Clone, Copy)]
pub(crate) struct Settings {
    /// Prefetch and concurrency.
    pub in_flight: usize,
    /// Its limit.
    pub calls_per_second: u32,
}

/// The name of the service itself.
pub(crate) const SERVICE: &str = "redeemer";

/// The build that is measured.
const OWN: &str = env!("CARGO_BIN_EXE_redeemer");

/// What does not limit: several times what one machine gets done.
pub(crate) const UNLIMITED: u32 = 10_000;

impl Contender {
    /// The service itself, as released, with its own log and metrics.
    pub(crate) async fn service(bed: &Bed, name: &str, settings: Settings) -> Result<Self> {
        let (names, reported) = establish(bed, name, settings).await?;
        let process = service(bed, name)?;
        Self::ready(bed, name, process, names, reported).await
    }

    /// Another build of the service.
    pub(crate) async fn build(bed: &Bed, name: &str, program: &Path, settings: Settings) -> Result<Self> {
        let (names, reported) = establish(bed, name, settings).await?;
        let process = run(redeemer(bed, name, program), bed, name)?;
        Self::ready(bed, name, process, names, reported).await
    }

    /// A peer that `benches/peers/prepare` has made ready below `peers`.
    pub(crate) async fn peer(bed: &Bed, name: &str, peers: &Path, in_flight: usize) -> Result<Self> {
        Self::peer_as(bed, name, name, peers, in_flight).await
    }

    /// The same on queues of another name.
    pub(crate) async fn peer_as(
        bed: &Bed,
        name: &str,
        peer: &str,
        peers: &Path,
        in_flight: usize,
    ) -> Result<Self> {
        ensure!(is_ready(peers, peer), "{}", why_absent(peers, peer));
        let settings = Settings { in_flight, calls_per_second: UNLIMITED };
        let (names, reported) = establish(bed, name, settings).await?;
        let mut command = peer::command(peers, peer);
        environment(&mut command, bed, &names, in_flight);
        let process = Process::start(&mut command, &bed.dir.join(format!("{name}.log")))?;
        Self::ready(bed, name, process, names, reported).await
    }

    /// This very program in its other role: see [`crate::hops`].
    pub(crate) async fn bare_hops(bed: &Bed) -> Result<Self> {
        let name = crate::hops::NAME;
        let settings = Settings { in_flight: 100, calls_per_second: UNLIMITED };
        let (names, reported) = establish(bed, name, settings).await?;
        let mut command = Command::new(std::env::current_exe()?);
        environment(&mut command, bed, &names, 100);
        command.arg(name);
        let process = Process::start(&mut command, &bed.dir.join(format!("{name}.log")))?;
        Self::ready(bed, name, process, names, reported).await
    }

    async fn ready(
        bed: &Bed,
        name: &str,
        mut process: Process,
        names: Names,
        reported: ReceivedEvent,
    ) -> Result<Self> {
        bed.consumers(&names, 1, &mut process).await?;
        Ok(Self { name: name.to_owned(), process, names, reported })
    }
}

/// Makes exchanges and queues by the service's own command line, the same for every contender, and listens.
async fn establish(bed: &Bed, name: &str, settings: Settings) -> Result<(Names, ReceivedEvent)> {
    configure(bed, name, settings)?;
    let log = bed.dir.join(format!("{name}.topology.log"));
    let made = Process::start(redeemer(bed, name, OWN.as_ref()).args(["topology", "apply"]), &log)?.wait()?;
    ensure!(made.success(), "the topology of {name} was not made: {}", std::fs::read_to_string(log)?);
    bed.listen(name).await
}

/// Starts one more instance of the service on the queues of `name`, which are there.
pub(crate) fn service(bed: &Bed, name: &str) -> Result<Process> {
    run(redeemer(bed, name, OWN.as_ref()), bed, name)
}

fn run(mut redeemer: Command, bed: &Bed, name: &str) -> Result<Process> {
    let log = bed.dir.join(format!("{name}.{}.log", uuid::Uuid::new_v4()));
    Process::start(redeemer.args(["run", "--with-parent"]).stdin(Stdio::piped()), &log)
}

/// The command line with the configuration of `name`, and with none of the caller's.
fn redeemer(bed: &Bed, name: &str, program: &Path) -> Command {
    let mut command = Command::new(program);
    command.arg("--config").arg(bed.dir.join(format!("{name}.toml"))).stdin(Stdio::null());
    for (variable, _) in std::env::vars_os() {
        if variable.to_string_lossy().starts_with("REDEEMER_") {
            command.env_remove(variable);
        }
    }
    command
}

fn configure(bed: &Bed, name: &str, settings: Settings) -> Result<()> {
    let Settings { in_flight, calls_per_second } = settings;
    let file = |name: &str| bed.file(name).display().to_string();
    let text = format!(
        "[broker]\nuri = {:?}\nprefetch = {in_flight}\n[broker.names]\ncommands = \"bench.{name}.commands\"\n\
         retry = \"bench.{name}.retry\"\nresults = \"bench.{name}.results\"\nunrouted = \"bench.{name}.unrouted\"\n\
         parked = \"bench.{name}.parked\"\n[wechat]\nbase_url = {:?}\nbackup_base_url = \"\"\nmchid = {:?}\n\
         merchant_serial = {:?}\nmerchant_key_file = {:?}\n[wechat.public_keys]\n{} = {:?}\n\
         [concurrency]\ncommands = {in_flight}\n[rate_limit]\ncalls_per_second = {calls_per_second}\n\
         [admin]\nlisten = \"127.0.0.1:0\"\n",
        bed.broker.uri(),
        bed.base_url,
        bed.identity("mchid"),
        bed.identity("merchant_serial"),
        file("merchant_key.pem"),
        bed.identity("public_key_id"),
        file("wechatpay_public_key.pem"),
    );
    std::fs::write(bed.dir.join(format!("{name}.toml")), text)?;
    Ok(())
}

fn environment(command: &mut Command, bed: &Bed, names: &Names, in_flight: usize) {
    PeerSettings {
        uri: bed.broker.uri(),
        commands: &names.commands,
        results: &names.results,
        in_flight,
        base_url: &bed.base_url,
        mchid: &bed.identity("mchid"),
        merchant_serial: &bed.identity("merchant_serial"),
        merchant_key_file: &bed.file("merchant_key.pem"),
        public_key_id: &bed.identity("public_key_id"),
        public_key_file: &bed.file("wechatpay_public_key.pem"),
    }
    .apply(command);
}
