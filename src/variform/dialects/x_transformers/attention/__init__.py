"""Keywords of upstream's attention (`attn_...`, `cross_attn_...`), routed to the mixers of the core."""
