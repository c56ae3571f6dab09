//! Asks for names as containers do, to see whether they are answered.

use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::path::Path;
use std::time::Duration;

use crate::nft::NAMES_ADDRESS;
use crate::overlay::{Asker, NameFault, Questioner};
use crate::{Error, Inner, namespace};

/// Port of servers for names.
const PORT: u16 = 53;

/// How long an answer may take: it comes from this host, and from memory.
const PATIENCE: Duration = Duration::from_secs(1);

/// Bytes of an answer that are read.
const ANSWER_BYTES: usize = 4_096;

impl Inner {
    /// What is wrong with the names that containers are told; with `mends`, servers that do not answer are made anew.
    pub(crate) fn audit_names(&self, mends: bool) -> Vec<String> {
        let (namer, askers) = {
            let state = self.lock();
            (state.overlays.namer().cloned(), state.overlays.askers())
        };
        let Some(namer) = namer else { return Vec::new() };
        let told: Vec<_> = askers.iter().map(Questioner::asker).collect();
        let faults = namer.faults(&told, &|container, questions| {
            let asker = askers.iter().find(|asker| asker.container == container);
            asker.map_or_else(|| Ok(Vec::new()), |asker| ask(&asker.netns, questions))
        });
        let mut said = Vec::new();
        for NameFault { container, problem } in faults {
            said.push(problem);
            if let Some(container) = container.filter(|_| mends) {
                let served = self.lock().overlays.serve_again(&container);
                said.extend(served.err().map(|error| format!("container {container}: {error}")));
            }
        }
        said
    }
}

impl Questioner {
    fn asker(&self) -> Asker<'_> {
        let Self { container, networks, servers, .. } = self;
        Asker { container, networks, servers }
    }
}

fn ask(netns: &Path, questions: &[Vec<u8>]) -> Result<Vec<Vec<u8>>, Error> {
    let failed = |error| Error::kernel("ask for names from within a container")(error);
    let asked = || -> io::Result<Vec<Vec<u8>>> {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.connect((NAMES_ADDRESS, PORT))?;
        let mut answers = Vec::new();
        for question in questions {
            socket.send(question)?;
            let mut answer = vec![0; ANSWER_BYTES];
            let length = socket.recv(&mut answer)?;
            answer.truncate(length);
            answers.push(answer);
        }
        Ok(answers)
    };
    namespace::within(netns, || asked().map_err(failed))
}
