"""Names of weights in every framework, and what names and shapes say of the network."""
