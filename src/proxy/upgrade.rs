//! WebSockets and other protocols that a connection goes over to.

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio_util::sync::CancellationToken;

/// Carries bytes both ways until one side ends, or `shutdown`.
pub(super) async fn tunnel(client: OnUpgrade, server: OnUpgrade, shutdown: CancellationToken) {
    let carried = async {
        let (client, server) = tokio::try_join!(client, server).map_err(std::io::Error::other)?;
        let (mut client, mut server) = (TokioIo::new(client), TokioIo::new(server));
        tokio::io::copy_bidirectional(&mut client, &mut server).await
    };
    tokio::select! {
        carried = carried => if let Err(error) = carried {
            tracing::debug!(%error, "an upgraded connection broke off");
        },
        () = shutdown.cancelled() => {}
    }
}
