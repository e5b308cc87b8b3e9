//! The floor: what the cryptography of one command costs on this machine at this time, in aws-lc-rs.

use std::fs;
use std::hint::black_box;
use std::time::Duration;

use anyhow::{Context as _, Result};
use base64::Engine as _;
use redeemer::wechat::keys::{MerchantKey, VerificationKey, read_secret};

use crate::bed::Bed;

/// The keys of one command.
pub(crate) struct Floor {
    merchant: MerchantKey,
    provider: MerchantKey,
    public: VerificationKey,
}

/// Processor time of each half, per command.
#[derive(Clone, Copy)]
pub(crate) struct Measured {
    pub sign_us: f64,
    pub verify_us: f64,
}

impl Measured {
    pub(crate) fn sum(self) -> f64 {
        self.sign_us + self.verify_us
    }

    pub(crate) fn mean(self, other: Self) -> Self {
        Self {
            sign_us: f64::midpoint(self.sign_us, other.sign_us),
            verify_us: f64::midpoint(self.verify_us, other.verify_us),
        }
    }
}

impl Floor {
    pub(crate) fn of(bed: &Bed) -> Result<Self> {
        let key = |name: &str| -> Result<MerchantKey> {
            Ok(MerchantKey::from_pem(&read_secret(&bed.file(name))?, name)?)
        };
        let pem = fs::read_to_string(bed.file("wechatpay_public_key.pem"))?;
        Ok(Self {
            merchant: key("merchant_key.pem")?,
            provider: key("wechatpay_private_key.pem")?,
            public: VerificationKey::from_public_pem(&pem, "the provider's key")?,
        })
    }

    /// Signs a request and verifies a reply of usual sizes, base64 included, `times` over.
    pub(crate) fn measure(&self, times: u32) -> Result<Measured> {
        let base64 = &base64::engine::general_purpose::STANDARD;
        let (request, reply) = (vec![b'q'; 700], vec![b'a'; 5_000]);
        let signature =
            base64.encode(self.provider.sign(&reply).context("the provider's key does not sign")?);
        let per_command =
            |before: Duration, after: Duration| (after - before).as_secs_f64() * 1e6 / f64::from(times);
        let start = thread_time();
        for _ in 0..times {
            let signature =
                self.merchant.sign(black_box(&request)).context("the merchant key does not sign")?;
            black_box(base64.encode(signature));
        }
        let signed = thread_time();
        for _ in 0..times {
            let signature = base64.decode(black_box(&signature))?;
            anyhow::ensure!(
                self.public.verifies(black_box(&reply), &signature),
                "a signature does not verify"
            );
        }
        let verified = thread_time();
        Ok(Measured { sign_us: per_command(start, signed), verify_us: per_command(signed, verified) })
    }
}

/// Processor time of this thread.
fn thread_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    // The processor time of a thread is neither negative nor older than the universe.
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}
