"""The ranking service: a bundle behind an HTTP interface.

`serving.ranker` scores requests and rows and knows no HTTP; `serving.app.create_app` makes the application;
`serving.server.serve` runs it; `serving.client` calls a running one. Nothing here loads torch.
"""
