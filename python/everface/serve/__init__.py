"""The server: live sessions over a WebSocket, rendered videos over HTTP, a page to talk to, health and metrics. An adapter over `live`."""
