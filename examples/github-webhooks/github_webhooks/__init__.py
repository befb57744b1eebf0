"""GitHub webhooks: a plugin of the analytics host."""
