"""What training configurations say of a network, and the settings that they become: data, read strictly, never run."""
