"""The compare page's server side: what was typed, the comparison that runs, and what the page shows of one."""
