#!/usr/bin/python3
"""Ledger: sums the accounts of a YAML file. Its image has Python in a layer of its own."""

import yaml

with open("/srv/ledger/accounts.yaml", encoding="utf-8") as file:
    accounts = yaml.safe_load(file)
print(f"ledger: {len(accounts)} accounts, balance {sum(account['balance'] for account in accounts)}")
