//! The bare hops: take, call, publish, acknowledge, with nothing in between. No command is read, nothing is signed but
//! once a minute, no reply is verified. What this adds to the provider's latency no service can save.

use std::env;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use anyhow::{Context as _, Result};
use futures_util::StreamExt as _;
use jiff::Timestamp;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions};
use lapin::protocol::basic::AMQPProperties;
use lapin::types::FieldTable;
use lapin::{Connection, ConnectionProperties};
use redeemer::wechat::client::Prepared;
use redeemer::wechat::keys::{MerchantKey, read_secret};
use redeemer::wechat::sign::{Merchant, sign};
use redeemer::wire::command::decode;

use crate::bed::command;

/// The argument that makes this program the bare hops.
pub(crate) const NAME: &str = "bare-hops";

/// The provider takes a signature for five minutes.
const SIGN_AGAIN: Duration = Duration::from_secs(60);

/// Runs until it is ended.
pub(crate) async fn run() -> Result<()> {
    let variable = |name: &str| env::var(name).with_context(|| format!("{name} is not set"));
    let in_flight: u16 = variable("PEER_IN_FLIGHT")?.parse()?;
    let results = variable("PEER_RESULTS")?;
    let key = read_secret(variable("PEER_KEY_FILE")?.as_ref())?;
    let key = MerchantKey::from_pem(&key, "the key")?;
    let merchant = Merchant { mchid: variable("PEER_MCHID")?, serial: variable("PEER_SERIAL")? };

    let redemption = decode(&command("auto_hops")).map_err(|rejected| anyhow::anyhow!("{rejected:?}"))?;
    let body = Prepared::new(&redemption).body().clone();
    let target = format!(
        "/v3/marketing/partner/product-coupon/users/{}/coupons/auto_hops/use",
        redemption.openid.as_str()
    );
    let url = format!("{}{target}", variable("PEER_BASE_URL")?);
    let header = {
        let body = body.clone();
        move || {
            let signed = sign(&key, &merchant, "POST", &target, &body, Timestamp::now(), rand::random());
            signed.map(redeemer::wechat::sign::Signed::into_header)
        }
    };
    let authorization = Arc::new(RwLock::new(header()?));
    let renewed = authorization.clone();
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(SIGN_AGAIN).await;
            if let (Ok(header), Ok(mut place)) = (header(), renewed.write()) {
                *place = header;
            }
        }
    });

    let http = reqwest::Client::builder().no_proxy().pool_idle_timeout(Duration::from_secs(7)).build()?;
    let uri = variable("PEER_URI")?;
    let connect = || Connection::connect(&uri, ConnectionProperties::default());
    let connections = [connect().await?, connect().await?];
    let publishing = connections[0].create_channel().await?;
    let channel = connections[1].create_channel().await?;
    channel.basic_qos(in_flight, BasicQosOptions::default()).await?;
    let queue = variable("PEER_COMMANDS")?;
    let options = BasicConsumeOptions::default();
    let mut consumer =
        channel.basic_consume(queue.as_str().into(), "".into(), options, FieldTable::default()).await?;
    while let Some(delivery) = consumer.next().await {
        let delivery = delivery?;
        let authorization = authorization.read().map_err(|_| anyhow::anyhow!("the signer panicked"))?.clone();
        let request = http
            .post(&url)
            .header("accept", "application/json")
            .header("content-type", "application/json")
            .header("user-agent", NAME)
            .header("authorization", authorization)
            .body(body.clone());
        let (publishing, results) = (publishing.clone(), results.clone());
        tokio::spawn(async move {
            let hop = async {
                let coupon = request.send().await?.error_for_status()?.bytes().await?;
                let code = delivery.properties.message_id().as_ref().map_or("", |id| id.as_str());
                let event = [b"{\"subject\":\"", code.as_bytes(), b"\",\"data\":", &coupon, b"}"].concat();
                let properties = AMQPProperties::default().with_delivery_mode(2);
                let options = BasicPublishOptions::default();
                let key = "redemption.redeemed.120344";
                publishing
                    .basic_publish(results.as_str().into(), key.into(), options, &event, properties)
                    .await?;
                delivery.acker.ack(BasicAckOptions::default()).await?;
                Ok::<_, anyhow::Error>(())
            };
            if let Err(error) = hop.await {
                eprintln!("{error:#}");
            }
        });
    }
    Ok(())
}
