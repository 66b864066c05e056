//! Credentials that are replaced under a running node: by new files, without a connection being broken.

use std::time::{Duration, SystemTime};

use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval},
};

use super::security::{self, Security};
use crate::alarms::{Alarm, Alarms};

/// The files are looked at so often.
const LOOK_EVERY: Duration = Duration::from_secs(5);
const DAY: Duration = Duration::from_secs(24 * 3600);
/// It is said anew when so much is left.
const WARN_AT_DAYS: [u64; 3] = [30, 7, 1];

/// Reads the files again when they have changed, or when it is asked for. Runs until it is aborted.
pub(crate) async fn renew(security: Security, mut asked: watch::Receiver<()>, alarms: Alarms) {
    let Security::Tls(tls) = security else { return std::future::pending().await };
    let mut taken = tls.first.clone();
    let mut warned = None;
    let mut ticks = interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            changed = asked.changed() => if changed.is_err() { return std::future::pending().await },
        }
        let replaced = match security::read(&tls.paths) {
            Ok(sources) if taken == sources => None,
            // What is not taken is tried again: it may become valid.
            Ok(sources) => Some(tls.load(&sources).inspect(|_| taken = sources.clone())),
            Err(error) => Some(Err(error)),
        };
        match replaced {
            None => alarms.set(Alarm::Credentials, None),
            Some(Ok(credentials)) => {
                let serial = credentials.own.serial_text();
                tracing::info!(serial, "the credentials were replaced: new connections are made by them");
                tls.replace(credentials);
                alarms.set(Alarm::Credentials, None);
            }
            Some(Err(error)) => alarms.set(
                Alarm::Credentials,
                Some(format!(
                    "the certificate, its key or the authority's files are not taken: {error}; those before stay"
                )),
            ),
        }
        let not_after = tls.present.load().not_after();
        alarms.set(
            Alarm::Expiry,
            expiry(not_after, SystemTime::now()).map(|(days, problem)| {
                if warned.replace(days).is_some_and(|before| before != days) {
                    tracing::warn!("{problem}");
                }
                problem
            }),
        );
    }
}

/// Of which day's warning it is time, and what it says.
fn expiry(not_after: SystemTime, now: SystemTime) -> Option<(u64, String)> {
    let Ok(left) = not_after.duration_since(now) else {
        return Some((
            0,
            "this node's certificate has expired: nobody lets it in any more; issue a new one".to_owned(),
        ));
    };
    let days = WARN_AT_DAYS.into_iter().filter(|days| left < DAY * u32::try_from(*days).unwrap_or(u32::MAX)).min()?;
    let hours = left.as_secs() / 3600;
    let left = if hours < 48 { format!("{hours} hours") } else { format!("{} days", hours / 24) };
    Some((
        days,
        format!("this node's certificate expires in {left}: issue a new one; it is taken up without a restart"),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_told_thirty_seven_and_one_day_before() {
        let now = SystemTime::UNIX_EPOCH + DAY * 20_000;
        let told = |left: Duration| expiry(now + left, now).map(|(days, _)| days);
        assert_eq!([31, 29, 6].map(|days| told(DAY * days)), [None, Some(30), Some(7)]);
        assert_eq!(told(DAY / 2), Some(1));
        assert_eq!(expiry(now - DAY, now).map(|(days, _)| days), Some(0));
        assert!(expiry(now + DAY * 6, now).unwrap().1.contains("6 days"));
        assert!(expiry(now + DAY / 2, now).unwrap().1.contains("12 hours"));
    }
}
