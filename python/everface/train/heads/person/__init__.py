"""Who a rendered person is: identity, skin, hair, brows, clothes, glasses."""
